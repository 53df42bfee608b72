"""How each module's weight is stored: the scheme's own way, and that of modules with one of their
own. Standard library only, for the plan reads it.

A width is written `w4`, `w8-g64` or `fp32`. A rule names modules as PEFT's target_modules do: a
whole dotted name or the end of one (`v_proj`, `mlp.down_proj`, `model.layers.3.mlp.down_proj`); of
several rules that fit, the first counts. A head that is tied to the embedding is `lm_head`; an
embedding of its own is `embed_tokens`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from edgetune.errors import UsageError

_FLOAT_BITS = 32
# 4-bit NormalFloat: the one algorithm whose codes are no evenly spaced numbers, and which has an
# operator of its own.
NF4 = "nf4"
_WORDS = re.compile(r"fp32|w(?P<bits>4|8)(-g(?P<group>16|32|64|128|256))?")
_RULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


class Stored(NamedTuple):
    """Bytes of a matrix, those of its scales (which the first include), and their number."""

    total: int
    scales: int = 0
    groups: int = 0


@dataclass(frozen=True)
class Width:
    """How one weight is stored: bits a value (32 and 16 without an algorithm: floats), values of a
    row that share a scale, who rounds them (a file in optimize/rounding), whether a group has no
    zero point, and how scales are stored: 32 bits, a float32 a group; 8, an int8 a group, counted
    in a float32 of the row (optimize/rounding/scales.py)."""

    bits: int
    group_size: int | None = None
    algorithm: str | None = None
    symmetric: bool = True
    scale_bits: int = 32

    @property
    def quantized(self) -> bool:
        """Whether anything is rounded at all."""
        return self.algorithm is not None

    @property
    def scales_in_steps(self) -> bool:
        """Whether scales are whole numbers of their row's step, in 8 bits."""
        return self.quantized and self.scale_bits != _FLOAT_BITS

    @property
    def name(self) -> str:
        """`w4-g32`, `nf4-g64`, `fp32`."""
        if not self.quantized:
            return f"fp{self.bits}"
        return f"{self.algorithm if self.algorithm == NF4 else f'w{self.bits}'}-g{self.group_size}"

    def stored(self, outputs: int, inputs: int) -> Stored:
        """What a matrix takes: groups are filled up, a zero point has as many bits as a value."""
        if self.group_size is None:
            return Stored(outputs * inputs * self.bits // 8)
        groups = -(-inputs // self.group_size)
        scales = outputs * groups * self.scale_bits // 8
        if self.scales_in_steps:
            scales += outputs * _FLOAT_BITS // 8
        zeros = 0 if self.symmetric else outputs * -(-groups * self.bits // 8)
        values = outputs * groups * self.group_size * self.bits // 8
        return Stored(values + scales + zeros, scales, outputs * groups)


FLOAT = Width(32)


@dataclass(frozen=True)
class Widths:
    """The width of every module."""

    default: Width
    rules: tuple[tuple[str, Width], ...] = ()

    def of(self, module: str) -> Width:
        """The width of a module by its name in the checkpoint."""
        return self.own(module) or self.default

    def own(self, module: str) -> Width | None:
        """The width that a rule gives a module; null where none fits."""
        for words, width in self.rules:
            if module == words or module.endswith(f".{words}"):
                return width
        return None

    def of_embedding(self) -> Width:
        """The width of an embedding that is not tied to the head: a float one unless a rule names
        it, for it is looked up and not multiplied."""
        return self.own("model.embed_tokens") or (FLOAT if self.default.quantized else self.default)

    def as_json(self) -> dict[str, Any]:
        """For a workflow and a step's key."""
        return {
            "default": asdict(self.default),
            "rules": [[words, asdict(width)] for words, width in self.rules],
        }


def widths_from_json(value: Mapping[str, Any]) -> Widths:
    """What `Widths.as_json` gave."""
    rules = tuple((str(words), Width(**width)) for words, width in value["rules"])
    return Widths(Width(**value["default"]), rules)


def parse_width(words: str, default: Width) -> Width:
    """The width that `w8`, `w8-g64` or `fp32` means; what it does not say is the default's.

    Raises UsageError for anything else.
    """
    found = _WORDS.fullmatch(words)
    if found is None:
        msg = f"{words!r} is no width"
        raise UsageError(msg, "write w4, w8, w8-g64 (a group size of 16 to 256) or fp32")
    if found["bits"] is None:
        return FLOAT
    group = int(found["group"]) if found["group"] else default.group_size or 32
    if default.algorithm is None or default.algorithm == NF4:
        return Width(int(found["bits"]), group, "rtn", scale_bits=8)
    return replace(default, bits=int(found["bits"]), group_size=group)


def check_rule(words: str) -> str:
    """A rule's name of modules, as it is. Raises UsageError for one that can name none."""
    if not _RULE.fullmatch(words):
        msg = f"{words!r} names no module"
        raise UsageError(msg, "write a module's dotted name or the end of one, such as v_proj")
    return words


def unused_rules(widths: Widths, modules: Sequence[str]) -> list[str]:
    """Rules that are no module's: written for another model, or misspelled."""
    used = {
        next((w for w, _ in widths.rules if m == w or m.endswith(f".{w}")), None) for m in modules
    }
    return [words for words, _ in widths.rules if words not in used]
