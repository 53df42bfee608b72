"""Quantization schemes, one row each; standard library only, for the plan reads it.

A name says the bits of weights (w) and activations (a) and the algorithm (a file in
optimize/rounding), with one scale for each group of weights along the input dimension.
What follows says which modules have 8 bits instead of 4: `h8` the head and the embedding, `mixed`
also attention's projections and down_proj of some layers, `selective` v_proj and down_proj of all.
`gptq` rounds by calibration text (`optimize.gptq`). docs/schemes.md has what each comes to.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from edgetune.errors import UsageError
from edgetune.optimize.widths import NF4, Width, Widths, check_rule, parse_width
from edgetune.providers import PROVIDERS, find_provider

_GROUP_SIZES = (16, 32, 64, 128, 256)
DEFAULT_SCHEME = "w8a16-rtn"
# In a rule: every layer that `sensitive_layers` names; every module that the adapters changed.
LAYERS, CHANGED = "{sensitive}", "{changed}"

Rules = tuple[tuple[str, str], ...]
# An embedding of its own; one that is tied to the head is the head.
_EMBEDDING_AT_8: Rules = (("embed_tokens", "w8"),)
_HEAD_AT_8: Rules = (("lm_head", "w8"), *_EMBEDDING_AT_8)
# Those of onnxruntime-genai's `k_quant_mixed`, which joins attention's three projections.
_MIXED: Rules = tuple(
    (f"layers.{LAYERS}.{module}", "w8")
    for module in (
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "qkv_proj")),
        "mlp.down_proj",
    )
)
_SELECTIVE: Rules = (("v_proj", "w8"), ("qkv_proj", "w8"), ("down_proj", "w8"))


@dataclass(frozen=True)
class Scheme:
    """How weights are stored, and how onnxruntime-genai's builder is told so."""

    name: str
    weight_bits: int
    # Weights that share a scale: the default, and what builder and kernels accept.
    group_size: int | None
    group_sizes: tuple[int, ...]
    algorithm: str | None
    # In the builder's words.
    precision: str
    accuracy_level: int | None
    # Whether a group has no zero point.
    symmetric: bool = True
    # Modules of another width, as `widths` writes them: (end of a module's name, width).
    rules: Rules = ()
    # Of a group's scale, as in `Width`.
    scale_bits: int = 8
    # What a provider must have kernels for, where that is more than the precision says.
    kernels: str | None = None
    # Olive passes in order; these are the project's own.
    passes: tuple[str, ...] = ("GenaiBuilder",)
    # Whether the width of each module is chosen by measurement, and for a graph of at most how many
    # bits a weight; null: the smallest that meets the tolerances.
    chooses: bool = False
    most_bits: float | None = None

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the execution providers with kernels, in ONNX Runtime's spelling."""
        return tuple(name for name, row in PROVIDERS.items() if self.needs in row.PRECISIONS)

    @property
    def needs(self) -> str:
        """What a provider must have kernels for, as `providers` names it."""
        return self.kernels or self.precision

    @property
    def calibrated(self) -> bool:
        """Whether it rounds by calibration text."""
        return "LayerwiseGptq" in self.passes

    def width(self, group_size: int | None = None) -> Width:
        """How it stores a module that has no width of its own."""
        if self.algorithm is None:
            return Width(self.weight_bits)
        group = group_size or self.group_size
        return Width(self.weight_bits, group, self.algorithm, self.symmetric, self.scale_bits)


def _four_bits(name: str, algorithm: str, rules: Rules, scale_bits: int = 8) -> Scheme:
    return Scheme(
        name, 4, 32, _GROUP_SIZES, algorithm, "int4", 4,
        symmetric=algorithm in ("rtn", "gptq"),
        rules=rules,
        scale_bits=scale_bits,
        passes=("LayerwiseGptq", "GenaiBuilder") if algorithm == "gptq" else ("GenaiBuilder",),
    )  # fmt: skip


SCHEMES: dict[str, Scheme] = {
    row.name: row
    for row in (
        Scheme("fp32", 32, None, (), None, "fp32", None),
        Scheme("fp16", 16, None, (), None, "fp16", None),
        Scheme("w8a16-rtn", 8, 32, _GROUP_SIZES, "rtn", "int8", 4, rules=_EMBEDDING_AT_8),
        # The builder's own bytes, float32 scales included: what others are compared with.
        _four_bits("w4a16-rtn", "rtn", _EMBEDDING_AT_8, 32),
        _four_bits("w4a16-rtn-h8", "rtn", _HEAD_AT_8, 32),
        _four_bits("w4a16-kquant", "kquant", _EMBEDDING_AT_8),
        _four_bits("w4a16-kquant-h8", "kquant", _HEAD_AT_8),
        _four_bits("w4a16-kquant-mixed", "kquant", _HEAD_AT_8 + _MIXED),
        _four_bits("w4a16-kquant-selective", "kquant", _HEAD_AT_8 + _SELECTIVE),
        _four_bits("w4a16-hqq", "hqq", _EMBEDDING_AT_8),
        _four_bits("w4a16-gptq", "gptq", _HEAD_AT_8),
        _four_bits("w4a16-gptq-selective", "gptq", _HEAD_AT_8 + _SELECTIVE),
        Scheme(
            "nf4a16", 4, 64, (64,), NF4, "int4", 4, kernels="nf4", scale_bits=32,
            rules=(("lm_head", "w8-g32"), ("embed_tokens", "w8-g32"), (CHANGED, "w8-g32")),
        ),
    )
}  # fmt: skip
# Widths chosen by measurement (docs/auto.md); `auto-5.5`: the best of 5.5 bits a weight.
AUTO = replace(_four_bits("auto", "gptq", ()), group_sizes=(), chooses=True)
_AUTO_BITS = re.compile(r"auto-(\d{1,2}(\.\d{1,2})?)")


def find_scheme(name: str) -> Scheme:
    """The scheme of this name. Raises UsageError for an unknown one."""
    if name in SCHEMES:
        return SCHEMES[name]
    if name == AUTO.name:
        return AUTO
    if found := _AUTO_BITS.fullmatch(name):
        return replace(AUTO, name=name, most_bits=float(found[1]))
    names = [*SCHEMES, AUTO.name]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"did you mean {close[0]!r}?" if close else f"the schemes are {', '.join(names)}"
    msg = f"no scheme is called {name!r}"
    raise UsageError(msg, meant)


def check_group_size(scheme: Scheme, group_size: int | None) -> int | None:
    """The group size to use: the given one, else the scheme's own; null where there is none, or
    each module has its own.

    Raises UsageError for one that the scheme does not take; nothing is rounded to a legal one.
    """
    if group_size is None:
        return None if scheme.chooses else scheme.group_size
    if scheme.chooses:
        msg = f"the scheme {scheme.name} chooses each module's group size, so it takes none"
        raise UsageError(msg, "leave the group size out, or choose another scheme")
    if scheme.group_size is None:
        msg = f"the scheme {scheme.name} quantizes nothing, so it takes no group size"
        raise UsageError(msg, "leave the group size out, or choose another scheme")
    if group_size not in scheme.group_sizes:
        sizes = ", ".join(map(str, scheme.group_sizes))
        msg = f"the scheme {scheme.name} takes no group size {group_size}"
        raise UsageError(msg, f"choose one of {sizes}")
    return group_size


def make_widths(
    scheme: Scheme,
    group_size: int | None = None,
    protect: Mapping[str, str] | None = None,
    *,
    layers: int = 0,
    changed: Collection[str] = (),
) -> Widths:
    """The width of every module: a recipe's `protect` {end of a module's name: width} first, then
    the scheme's own rules.

    `layers`: how many the model has; `changed`: modules that the adapters changed. Raises
    UsageError for a name, a width or a group size that is none, ValueError for a scheme whose rules
    go by layers when their number is not given.
    """
    default = scheme.width(check_group_size(scheme, group_size))
    words = [*(protect or {}).items(), *_expanded(scheme.rules, layers, changed)]
    rules = [(check_rule(module), parse_width(width, default)) for module, width in words]
    return Widths(default, tuple(rules))


def _expanded(rules: Rules, layers: int, changed: Collection[str]) -> Iterator[tuple[str, str]]:
    for words, width in rules:
        if words == CHANGED:
            yield from ((module, width) for module in sorted(changed))
        elif LAYERS in words:
            if layers < 1:
                msg = f"{words}: the number of layers is not known"
                raise ValueError(msg)
            for number in sensitive_layers(layers):
                yield words.replace(LAYERS, str(number)), width
        else:
            yield words, width


def sensitive_layers(layers: int) -> list[int]:
    """Layers that llama.cpp's mixed types, and onnxruntime-genai's after them, give more bits: the
    first and the last eighth, and every third between (`use_more_bits` in llama-quant.cpp)."""
    eighth = layers / 8
    return [
        n for n in range(layers)
        if n < eighth or n >= 7 * eighth or (n - round(eighth)) % 3 == 2
    ]  # fmt: skip


def variant_name(provider: str, scheme: str, group_size: int | None = None) -> str:
    """`cpu-w8a16-rtn`, or `cpu-w8a16-rtn-g128` for a group size other than the scheme's own."""
    own = find_scheme(scheme).group_size
    suffix = "" if group_size in (None, own) else f"-g{group_size}"
    return f"{find_provider(provider).SHORT_NAME}-{scheme}{suffix}"


def parse_scheme(text: str, group_size: int | None = None) -> tuple[Scheme, int | None]:
    """The scheme and group size that `w8a16-rtn` or `w8a16-rtn-g128` mean.

    `group_size` is the recipe's own key. Raises UsageError for an unknown scheme, an illegal group
    size, or two group sizes that differ.
    """
    name, mark, digits = text.rpartition("-g")
    if not (mark and digits.isdecimal()):
        scheme = find_scheme(text)
        return scheme, check_group_size(scheme, group_size)
    if group_size not in (None, int(digits)):
        msg = f"the scheme {text} names another group size than group_size: {group_size}"
        raise UsageError(msg, "leave one of the two out")
    scheme = find_scheme(name)
    return scheme, check_group_size(scheme, int(digits))
