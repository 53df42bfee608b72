"""At which lengths a model is measured beyond short texts: where its arithmetic changes, and at its
context window.

LongRoPE rotates with other tables beyond its original length, and a layer with a sliding window
sees no farther than that. A graph that loses either opens and answers, with other numbers from
there on. Chosen from config.json and shapes alone. Standard library only.

A stretch at the threshold T predicts after T-15 … T+16 tokens, the one at the context window M
after M-31 … M. Memory bounds all of them, by the machine's total (what is free now would give
another package every day); work bounds the last one, which else would be nearly all that a build
does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgetune.optimize.size import cache_bytes_per_token

LONGROPE = "LongRoPE's original length"
SLIDING = "sliding window"
WINDOW = "context window"
LONGEST = "longest that fits"
POSITIONS = 32
# Multiplications and additions of one pass: a minute or so of two slow cores.
MOST_OPERATIONS = 3e12
_LONGROPE_LENGTH = 4096
_GIB = 1 << 30


@dataclass(frozen=True)
class _Family:
    """Defaults of transformers' configuration class, and whether it has a switch for windows."""

    context: int
    window: int | None = None
    switched: bool = False
    head_dim: int | None = None
    # Soft caps of attention: scores are written out for every pair of positions.
    capped: bool = False


# The families whose arithmetic can change with the length; the others have neither.
_FAMILIES: dict[str, _Family] = {
    "gemma2": _Family(8192, 4096, head_dim=256, capped=True),
    "gemma3_text": _Family(131_072, 4096, head_dim=256),
    "mistral": _Family(131_072, 4096),
    "phi3": _Family(4096),
    "qwen2": _Family(32_768, 4096, switched=True),
    "qwen3": _Family(32_768, 4096, switched=True, head_dim=128),
    "smollm3": _Family(32_768, switched=True),
}


@dataclass(frozen=True)
class Stretch:
    """Neighbouring positions of a text: what is predicted after `first` … `last` tokens.

    `at`: the length that it is about. `bytes`: what reading `last` tokens takes beside the weights.
    """

    what: str
    at: int
    first: int
    last: int
    bytes: int

    @property
    def positions(self) -> int:
        """How many predictions are scored."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class LongContext:
    """What is measured of a model whose arithmetic changes with the length of the text.

    `window`: the most tokens that it takes, as its config says. `not_measured`: sentences.
    """

    window: int
    stretches: tuple[Stretch, ...]
    not_measured: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """What the longest stretch takes beside the weights."""
        return max((stretch.bytes for stretch in self.stretches), default=0)

    def as_json(self) -> dict[str, Any]:
        """For the reference step, and the package's `self_test/long_context/lengths.json`."""
        return {
            "window": self.window,
            "stretches": [asdict(stretch) for stretch in self.stretches],
            "not_measured": list(self.not_measured),
        }

    def in_words(self) -> str:
        """One line for a plan."""
        parts = [f"{s.what} {s.at}: {s.first} to {s.last} tokens" for s in self.stretches]
        return "; ".join([*parts, *self.not_measured])


def choose_lengths(
    config: Mapping[str, Any], layer_weights: int, memory_bytes: int
) -> LongContext | None:
    """The stretches for a model of this config.json; null where nothing changes with the length.

    `layer_weights`: how many numbers its layers have; `memory_bytes`: the machine's, of which a
    pass may take half. It is rounded to GiB, as systems reserve a little more or less of it.
    """
    found = thresholds(config)
    if not found:
        return None
    window = context_window(config)
    room = round(memory_bytes / _GIB) * _GIB // 2
    stretches: list[Stretch] = []
    refused: list[str] = []
    for what, at in found:
        # Contexts T-15 … T+16: as many on either side.
        wanted = _stretch(
            config, what, at, at - POSITIONS // 2 + 1, min(at + POSITIONS // 2, window)
        )
        if wanted.bytes <= room:
            stretches.append(wanted)
        else:
            refused.append(f"not measured at the {what} of {at} tokens: {_too_large(wanted, room)}")
    whole = _stretch(config, WINDOW, window, window - POSITIONS + 1, window)
    work = pass_operations(config, layer_weights, window)
    if whole.bytes <= room and work <= MOST_OPERATIONS:
        return LongContext(window, (*stretches, whole), tuple(refused))
    why = _too_large(whole, room) if whole.bytes > room else _too_slow(work)
    longest = _longest(
        window,
        lambda length: (
            pass_bytes(config, length) <= room
            and pass_operations(config, layer_weights, length) <= MOST_OPERATIONS
        ),
    )
    reached = max((stretch.last for stretch in stretches), default=0)
    if longest > max(reached, POSITIONS):
        first = longest - POSITIONS + 1
        stretches.append(_stretch(config, LONGEST, longest, first, longest))
    last = max((stretch.last for stretch in stretches), default=None)
    ending = f"; the longest measured is {last}" if last else "; none is measured"
    refused.append(f"not measured at the {WINDOW} of {window} tokens: {why}{ending}")
    return LongContext(window, tuple(stretches), tuple(refused))


def layer_weights(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers the layers of a checkpoint have, from its tensors' shapes."""
    return sum(math.prod(shape) for name, shape in shapes.items() if ".layers." in name)


def thresholds(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(what changes, after how many tokens), the shorter first; none for most models."""
    window = context_window(config)
    found = [(LONGROPE, _longrope_length(config)), (SLIDING, _sliding_window(config))]
    kept = [(what, at) for what, at in found if at is not None and at < window]
    return sorted(kept, key=lambda row: row[1])


def context_window(config: Mapping[str, Any]) -> int:
    """The most tokens a model takes: config.json's, else its family's; 0 where neither is known."""
    family = _FAMILIES.get(str(config.get("model_type")))
    stated = config.get("max_position_embeddings")
    return int(stated or (family.context if family else 0))


def pass_bytes(config: Mapping[str, Any], length: int) -> int:
    """What reading a text of `length` tokens takes beside the weights, in torch float32 and in the
    package, whichever is more. Predicted; measured peaks are 0.5 to 1.0 of it
    (docs/long-context.md).

    Four values as wide as the MLP and ten as wide as the residual or the heads are alive at a time,
    and the package has its cache. Beyond a window torch writes a mask of all pairs (a byte each,
    then a float); with capped scores both write the scores of all pairs and heads, twice.
    """
    family = _FAMILIES.get(str(config.get("model_type")))
    width = max(int(config.get("hidden_size") or 0), _heads_width(config))
    inner = int(config.get("intermediate_size") or 4 * width)
    total = length * (4 * (4 * inner + 10 * width) + cache_bytes_per_token(config))
    if family is not None and family.capped:
        total += 8 * int(config.get("num_attention_heads") or 1) * length**2
    window = _sliding_window(config)
    if window is not None and window < length:
        total += 5 * length**2
    return total


def pass_operations(config: Mapping[str, Any], layer_weights: int, length: int) -> float:
    """Multiplications and additions of one pass: two a weight and token, and attention's scores and
    sums over all pairs of positions. Embedding and head run for no or for 32 of the tokens."""
    layers = int(config.get("num_hidden_layers") or 0)
    return 2.0 * layer_weights * length + 4.0 * layers * _heads_width(config) * length**2


def _stretch(config: Mapping[str, Any], what: str, at: int, first: int, last: int) -> Stretch:
    return Stretch(what, at, max(1, first), last, pass_bytes(config, last))


def _longest(window: int, fits: Callable[[int], bool]) -> int:
    """The largest multiple of 32 below the window that fits; 0 where none does."""
    low, high = 0, (window - 1) // POSITIONS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * POSITIONS) else (low, middle - 1)
    return low * POSITIONS


def _too_large(stretch: Stretch, room: int) -> str:
    return (
        f"reading {stretch.last} tokens takes about {stretch.bytes / 1e9:.1f} GB beside the "
        f"weights (predicted), more than half of this machine's {2 * room / 1e9:.1f} GB"
    )


def _too_slow(work: float) -> str:
    return f"it takes about {work:.1e} operations (predicted), more than {MOST_OPERATIONS:.0e}"


def _longrope_length(config: Mapping[str, Any]) -> int | None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if config.get("model_type") != "phi3" or rope.get("rope_type", rope.get("type")) != "longrope":
        return None
    stated = config.get("original_max_position_embeddings")
    return int(stated or rope.get("original_max_position_embeddings") or _LONGROPE_LENGTH)


def _sliding_window(config: Mapping[str, Any]) -> int | None:
    """How many tokens a layer sees that has a window; null where no layer has one."""
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None or (family.switched and not config.get("use_sliding_window")):
        return None
    window = config.get("sliding_window", family.window)
    return int(window) if window and window > 0 and any(_slides(config)) else None


def _slides(config: Mapping[str, Any]) -> Iterator[bool]:
    """For each layer whether it has a window, as transformers' configuration classes decide."""
    kind = config.get("model_type")
    layers = range(int(config.get("num_hidden_layers") or 0))
    types = config.get("layer_types")
    if kind in ("mistral", "phi3"):
        yield from (True for _ in layers)
    elif types is not None:
        yield from (name == "sliding_attention" for name in types)
    elif kind in ("qwen2", "qwen3"):
        first = config.get("max_window_layers", 28)
        yield from (layer >= first for layer in layers)
    elif kind == "smollm3":
        # Those without rotary embeddings.
        rotated = config.get("no_rope_layers")
        interval = config.get("no_rope_layer_interval", 4)
        yield from (not (rotated[layer] if rotated else (layer + 1) % interval) for layer in layers)
    else:
        pattern = 2 if kind == "gemma2" else config.get("sliding_window_pattern", 6)
        yield from (bool((layer + 1) % pattern) for layer in layers)


def _heads_width(config: Mapping[str, Any]) -> int:
    family = _FAMILIES.get(str(config.get("model_type")))
    heads = int(config.get("num_attention_heads") or 1)
    default = family.head_dim if family else None
    own = config.get("head_dim") or default or int(config.get("hidden_size") or 0) // heads
    return heads * int(own)
