"""From weights to codes, one file an algorithm.

Each has `round_block(block, width)`: rows of a module as a MatMulNBits stores them (`nf4`: as a
MatMulBnb4 does). Codes are unsigned; without zero points the middle one, 2^(bits−1), stands for
zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from edgetune.optimize.rounding import gptq, hqq, kquant, nf4, rtn
from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.widths import Width

Rounder = Callable[[Block, Width], Rounded]

ROUNDERS: dict[str, Rounder] = {
    "rtn": rtn.round_block,
    "kquant": kquant.round_block,
    "hqq": hqq.round_block,
    "nf4": nf4.round_block,
}


def all_rounders(codes: Path | None) -> Mapping[str, Rounder]:
    """Every algorithm that has what it needs; `codes`: the folder into which an Olive pass has
    written what it rounded by calibration text."""
    if codes is None:
        return ROUNDERS
    return {**ROUNDERS, "gptq": partial(gptq.round_block, codes=codes)}
