"""Quantization schemes, one row each; standard library only, for the plan reads it.

A name says the bits of weights (w) and activations (a) and the algorithm; `rtn` is rounding to
nearest, symmetric, with one float32 scale for each group of weights along the input dimension.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgetune.errors import UsageError
from edgetune.optimize.widths import FLOAT, Width, Widths, check_rule, parse_width
from edgetune.providers import PROVIDERS, find_provider

_GROUP_SIZES = (16, 32, 64, 128, 256)
DEFAULT_SCHEME = "w8a16-rtn"


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
    rules: tuple[tuple[str, str], ...] = ()
    # Olive passes in order; `GenaiBuilder` is the project's own.
    passes: tuple[str, ...] = ("GenaiBuilder",)
    # Whether the width of each module is chosen by measurement, and for a graph of at most how many
    # bits a weight; null: the smallest that meets the tolerances.
    chooses: bool = False
    most_bits: float | None = None

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the execution providers with kernels, in ONNX Runtime's spelling."""
        return tuple(name for name, row in PROVIDERS.items() if self.precision in row.PRECISIONS)

    def width(self, group_size: int | None = None) -> Width:
        """How it stores a module that has no width of its own."""
        if self.algorithm is None:
            return FLOAT
        group = group_size or self.group_size
        return Width(self.weight_bits, group, self.algorithm, self.symmetric)


SCHEMES: dict[str, Scheme] = {
    row.name: row
    for row in (
        Scheme("fp32", 32, None, (), None, "fp32", None),
        Scheme("w8a16-rtn", 8, 32, _GROUP_SIZES, "rtn", "int8", 4),
        Scheme("w4a16-rtn", 4, 32, _GROUP_SIZES, "rtn", "int4", 4),
    )
}
# Widths chosen by measurement (docs/auto.md); `auto-5.5`: the best of 5.5 bits a weight.
AUTO = Scheme("auto", 4, 32, (), "rtn", "int4", 4, chooses=True)
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
    scheme: Scheme, group_size: int | None = None, protect: Mapping[str, str] | None = None
) -> Widths:
    """The width of every module: a recipe's `protect` {end of a module's name: width} first, then
    the scheme's own rules. Raises UsageError for a name, a width or a group size that is none."""
    default = scheme.width(check_group_size(scheme, group_size))
    words = [*(protect or {}).items(), *scheme.rules]
    return Widths(default, tuple((check_rule(m), parse_width(w, default)) for m, w in words))


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
