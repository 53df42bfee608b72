"""The sensitivity step: KL(merged ‖ one module quantized, the rest in float32), for every module.

Measured at `w4-g32`, and where that costs much at `w8-g32` too, from the module's own layer on:
what stands before it is kept. A tied embedding, which is a lookup and a product, is measured at all
widths. At the other widths KL is predicted: it grows with the squared error of the module's output
(KL is quadratic in small errors, and those of rounding are as good as independent), which follows
from the weights and the inputs' squares. Some allocations are then run as a whole, to show what
adding costs up is worth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checkpoint.trained import load_plain
from edgetune.files import dump_json, write_text
from edgetune.optimize.allocation import Allocation, Option, make_path
from edgetune.optimize.allocation_widths import (
    EMBEDDING_MODULE,
    HEAD_MODULE,
    MEASURED,
    OFFERED,
    fixed_bytes,
    module_shapes,
)
from edgetune.optimize.widths import Width, parse_width
from edgetune.reference.measure import deterministic, threads_for, write_logits
from edgetune.reference.render import ScoredItem
from edgetune.reference.survival_worker import Scored, kl_of_items, with_weight
from edgetune.sensitivity import RESULT
from edgetune.sensitivity.layers import layers_of, running, squares_of_inputs, states_after
from edgetune.sensitivity.rounded import noise_energy, rounded_weight
from edgetune.sensitivity.text import calibration_items

Progress = Callable[[str], None]

# Of the largest sum of KL: where allocations are measured as a whole.
_JOINT_SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
# Of all modules' KL at 4 bits: from here on a module is measured at 8 bits as well.
_LARGE_SHARE = 0.02
_MEASURED_8 = "w8-g32"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class _Measurement:
    """What the functions share: the model, the text, and what is known of it in float32."""

    model: Any
    items: tuple[ScoredItem, ...]
    rows: tuple[slice, ...]
    # Log-probabilities (or logits) of the merged model, [positions, vocabulary].
    trained: NDArray[np.float32]
    # What each layer gives for each item.
    states: list[list[torch.Tensor]]
    squares: Mapping[str, torch.Tensor]
    default: Width

    @property
    def positions(self) -> int:
        return int(self.rows[-1].stop)

    def kl_from(self, first: int, given: Sequence[torch.Tensor | None]) -> float:
        """KL(merged ‖ the model as it is now) in nats a token, from layer `first` on; `given`: what
        goes into that layer for each item."""
        layers, total = layers_of(self.model), 0.0
        for item, rows, state in zip(self.items, self.rows, given, strict=True):
            with running(layers, first, len(layers), state):
                total += sum(kl_of_items(self.model, Scored((item,), (rows,)), self.trained))
        return total / self.positions

    def before(self, first: int) -> Sequence[torch.Tensor | None]:
        """What goes into a layer in float32, for each item."""
        return [None] * len(self.items) if first == 0 else self.states[first - 1]


def sensitivity_step(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """Write `sensitivity.json` into `out`: {modules: [{name, outputs, inputs, options: [{width,
    bytes, kl, how}]}], joint: [{added, kl}], measured_at, source, items, positions, fixed_bytes,
    parameters}; `how`: measured or predicted.

    arguments: checkpoint (the merged folder), calibration (JSON lines or null), task, default (the
    scheme's own width: {bits, group_size, algorithm, symmetric}), seed, threads, layered (the model
    does not fit the memory; changes no result). Facts: modules, items, positions, source. Raises
    UsageError for calibration data that is too short.
    """
    checkpoint = Path(arguments["checkpoint"])
    default = Width(**arguments["default"])
    merged = read_checkpoint(checkpoint)
    tensors = {name: entry.shape for name, entry in merged.tensors.items()}
    shapes = module_shapes(tensors, merged.tied)
    progress("loading the merged model in torch")
    scratch = out if arguments.get("layered") else None
    model = load_plain(checkpoint, torch.float32, scratch)
    with deterministic(threads_for(checkpoint, int(arguments["threads"]))):
        given = arguments["calibration"]
        source, items = calibration_items(
            model,
            checkpoint,
            Path(given) if given else None,
            arguments["task"],
            int(arguments["seed"]),
            len(shapes),
            progress,
        )
        logits = out / "logits.npy"
        with write_logits(model, items, logits, "merged model", progress):
            trained = np.load(logits, mmap_mode="r", allow_pickle=False)
            found = _in_float(model, items, trained, shapes, default, progress)
            options = _options(found, shapes, merged.tied, progress)
            joint = _joint(found, options, progress)
        logits.unlink()
    value = {
        "measured_at": MEASURED,
        "source": source,
        "items": len(items),
        "positions": found.positions,
        "parameters": sum(math.prod(shape) for shape in tensors.values()),
        "fixed_bytes": fixed_bytes(merged.config, tensors, merged.tied),
        "modules": [
            {"name": name, "outputs": shapes[name][0], "inputs": shapes[name][1], "options": rows}
            for name, rows in options.items()
        ],
        "joint": joint,
    }
    write_text(out / RESULT, dump_json(value))
    return {key: value[key] for key in ("source", "items", "positions", "measured_at")} | {
        "modules": len(shapes)
    }


def _layer_of(module: str) -> int:
    found = _LAYER.match(module)
    return int(found[1]) if found else -1


def _in_float(
    model: Any,
    items: tuple[ScoredItem, ...],
    trained: NDArray[np.float32],
    shapes: Mapping[str, tuple[int, int]],
    default: Width,
    progress: Progress,
) -> _Measurement:
    """What each layer gives in float32, and the squares of what goes into each module."""
    counts = [item.positions for item in items]
    ends = np.cumsum(counts)
    rows = tuple(slice(int(e) - n, int(e)) for e, n in zip(ends, counts, strict=True))
    modules = {name: model.get_submodule(name) for name in shapes}
    states: list[list[torch.Tensor]] = []
    products = {n: m for n, m in modules.items() if n not in (HEAD_MODULE, EMBEDDING_MODULE)}
    with squares_of_inputs(products) as squares:
        before: Sequence[torch.Tensor | None] = [None] * len(items)
        for number in range(len(layers_of(model))):
            progress(f"in float32: layer {number + 1}")
            states.append(states_after(model, items, number, before))
            before = states[-1]
    found = _Measurement(model, items, rows, trained, states, squares, default)
    with squares_of_inputs({HEAD_MODULE: modules[HEAD_MODULE]}) as of_head:
        found.kl_from(len(states), states[-1])
    squares.update(of_head)
    if EMBEDDING_MODULE in shapes:
        # Looked up, not multiplied: the error of a row is that of what it gives.
        squares[EMBEDDING_MODULE] = torch.ones(shapes[EMBEDDING_MODULE][1], dtype=torch.float64)
    return found


def _options(
    found: _Measurement, shapes: Mapping[str, tuple[int, int]], tied: bool, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """{module: its options}."""
    widths = {words: parse_width(words, found.default) for words in OFFERED}
    both = {HEAD_MODULE} if tied else set()
    measured: dict[str, dict[str, float]] = {}
    for number, name in enumerate(shapes, 1):
        progress(f"module {number} of {len(shapes)} alone")
        wanted = [w for w in OFFERED if w != "fp32"] if name in both else [MEASURED]
        measured[name] = {w: _alone(found, name, widths[w], name in both) for w in wanted}
    # Where 4 bits cost much, KL is no longer quadratic and says little of 8 bits.
    total = sum(costs[MEASURED] for costs in measured.values())
    large = [
        name
        for name, costs in measured.items()
        if costs[MEASURED] >= _LARGE_SHARE * total or name == EMBEDDING_MODULE
    ]
    for number, name in enumerate(large, 1):
        progress(f"module {number} of {len(large)} alone, at 8 bits")
        if name not in both:
            measured[name][_MEASURED_8] = _alone(found, name, widths[_MEASURED_8], False)
    return {name: _rows(found, name, shapes[name], widths, measured[name]) for name in shapes}


def _rows(
    found: _Measurement,
    name: str,
    shape: tuple[int, int],
    widths: Mapping[str, Width],
    measured: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The options of a module: what was measured of it, and what follows from its noise."""
    weight = found.model.get_submodule(name).weight.data

    def noise(words: str) -> float:
        return noise_energy(name, weight, widths[words], found.squares[name])

    own = {words: noise(words) for words in (MEASURED, _MEASURED_8) if words in measured}

    def cost(words: str) -> float:
        if words in measured or not widths[words].quantized:
            return measured.get(words, 0.0)
        near = _MEASURED_8 if widths[words].bits == 8 and _MEASURED_8 in own else MEASURED
        return measured[near] * noise(words) / own[near] if own[near] else 0.0

    return [
        {
            "width": words,
            "bytes": width.stored_bytes(*shape)[0],
            "kl": _digits(cost(words)),
            "how": "measured" if words in measured or not width.quantized else "predicted",
        }
        for words, width in widths.items()
    ]


def _alone(found: _Measurement, name: str, width: Width, both: bool) -> float:
    """KL of the model with this module alone quantized; `both`: it is the embedding too."""
    module = found.model.get_submodule(name)
    layer = _layer_of(name)
    looked_up = both or name == EMBEDDING_MODULE
    first = layer if layer >= 0 else (0 if looked_up else len(found.states))
    (kl,) = with_weight(
        module,
        rounded_weight(name, module.weight.data, width),
        lambda: [found.kl_from(first, found.before(first))],
    )
    return kl


def _joint(
    found: _Measurement, options: Mapping[str, list[dict[str, Any]]], progress: Progress
) -> list[dict[str, float]]:
    """Allocations of the greedy path, quantized as a whole: what was added up, and what it is."""
    path = make_path(
        {n: [Option(o["width"], o["bytes"], o["kl"]) for o in rows] for n, rows in options.items()}
    )
    most = path[0].kl
    chosen: dict[float, Allocation] = {}
    for share in _JOINT_SHARES:
        nearest = next((a for a in path if a.kl <= share * most), path[-1])
        if nearest.kl > 0:
            chosen[nearest.kl] = nearest
    rows = []
    for number, allocation in enumerate(chosen.values(), 1):
        progress(f"allocation {number} of {len(chosen)} as a whole")
        rows.append({"added": allocation.kl, "kl": _digits(_together(found, allocation))})
    return rows


def _together(found: _Measurement, allocation: Allocation) -> float:
    """KL of the model with every module at its width, one layer quantized at a time."""
    model = found.model
    widths = {name: parse_width(w, found.default) for name, w in allocation.widths.items()}
    given: Sequence[torch.Tensor | None] = [None] * len(found.items)
    # The embeddings and the head are quantized all along, a layer while it runs.
    outer = [name for name in widths if _layer_of(name) < 0]
    with _quantized(model, {name: widths[name] for name in outer}):
        for number in range(len(found.states)):
            own = {name: width for name, width in widths.items() if _layer_of(name) == number}
            with _quantized(model, own):
                given = states_after(model, found.items, number, given)
        return found.kl_from(len(found.states), given)


@contextmanager
def _quantized(model: Any, widths: Mapping[str, Width]) -> Iterator[None]:
    """The model with these modules quantized, while the block runs."""
    before = {}
    try:
        for name, width in widths.items():
            module = model.get_submodule(name)
            before[name] = module.weight.data
            module.weight.data = rounded_weight(name, module.weight.data, width)
        yield
    finally:
        for name, weight in before.items():
            model.get_submodule(name).weight.data = weight


def _digits(value: float) -> float:
    """Four digits: the last ones depend on how the processor adds."""
    return float(f"{value:.4g}")
