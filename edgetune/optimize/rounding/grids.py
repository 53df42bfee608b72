"""The loop of algorithms that choose a grid for each group by itself: k-quant and HQQ."""

from __future__ import annotations

from collections.abc import Callable

import torch

from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.rounding.pack import pack_groups
from edgetune.optimize.rounding.scales import row_steps, to_steps
from edgetune.optimize.threads import one_thread
from edgetune.optimize.widths import Width

# Of float32 values, worked on at a time: small enough that what an algorithm makes of them, several
# times that, stays in the processor's cache (2^16 take half the time of 2^20).
_CHUNK_VALUES = 1 << 16

# Codes [outputs, groups, group size], scales and zero points [outputs, groups, 1].
Grid = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def round_groups(
    block: Block, width: Width, choose: Callable[[torch.Tensor, int], Grid]
) -> Rounded:
    """`choose(values [outputs, groups, group size] float32, largest code)` over a block, some rows
    at a time; a last short group is filled up with zeros. Scales in 8 bits are the nearest to the
    chosen ones, and zero points and codes are made anew for them.

    Raises ValueError for a width without groups, or without zero points.
    """
    if width.group_size is None:
        msg = f"{block.module}: {width.name} has no groups to round"
        raise ValueError(msg)
    if width.symmetric:
        msg = f"{block.module}: {width.algorithm} has zero points"
        raise ValueError(msg)
    most, in_steps = 2**width.bits - 1, width.scales_in_steps
    with one_thread():
        found, steps = [], []
        for values in _chunks_of(block, width.group_size):
            chosen = choose(values, most)
            if in_steps:
                steps.append(row_steps(chosen[1].flatten(1)))
                chosen = _in_steps(values, chosen, steps[-1], most)
            found.append(chosen)
    codes, scales, zeros = (torch.cat(parts) for parts in zip(*found, strict=True))
    return pack_groups(
        codes.to(torch.uint8).numpy(),
        scales.flatten(1).numpy(),
        zeros.flatten(1).to(torch.uint8).numpy(),
        width.bits,
        torch.cat(steps).numpy() if in_steps else None,
    )


def _in_steps(values: torch.Tensor, chosen: Grid, steps: torch.Tensor, most: int) -> Grid:
    _, scale, zero = chosen
    nearest = to_steps(scale, steps[:, :, None])
    zero = (zero * scale / nearest).nan_to_num_(0).round_().clamp_(0, most)
    codes = ((values / nearest).nan_to_num_(0).round_() + zero).clamp_(0, most)
    return codes, nearest, zero


def _chunks_of(block: Block, group_size: int) -> tuple[torch.Tensor, ...]:
    outputs, inputs = block.values.shape
    groups = -(-inputs // group_size)
    values = torch.zeros((outputs, groups * group_size), dtype=torch.float32)
    values[:, :inputs].copy_(block.values)
    height = max(1, _CHUNK_VALUES // values.shape[1])
    return tuple(values.reshape(outputs, groups, group_size).split(height))
