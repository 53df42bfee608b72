"""From codes to the bytes of a MatMulNBits, for the algorithms that choose codes themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.widths import Width

# Of float32 values, worked on at a time: small enough that what an algorithm makes of them, several
# times that, stays in the processor's cache (2^16 take half the time of 2^20).
_CHUNK_VALUES = 1 << 16


def chunks_of(block: Block, width: Width) -> list[torch.Tensor]:
    """The block in float32 as [outputs, groups, group size], some rows at a time; a last short
    group is filled up with zeros. Raises ValueError for a width without groups."""
    if width.group_size is None:
        msg = f"{block.module}: {width.name} has no groups to round"
        raise ValueError(msg)
    outputs, inputs = block.values.shape
    groups = -(-inputs // width.group_size)
    values = torch.zeros((outputs, groups * width.group_size), dtype=torch.float32)
    values[:, :inputs].copy_(block.values)
    height = max(1, _CHUNK_VALUES // values.shape[1])
    return list(values.reshape(outputs, groups, width.group_size).split(height))


@contextmanager
def one_thread() -> Iterator[None]:
    """While the block runs torch has one thread: on tensors this small others wait, and on a busy
    machine k-quant takes seven times as much processor time with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def packed(
    codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, bits: int
) -> Rounded:
    """Codes [outputs, groups, group size], scales and zero points [outputs, groups, 1], whole
    numbers of so many bits all but the scales, as a MatMulNBits stores them."""
    zeros = zero_points.flatten(1).to(torch.uint8).numpy()
    if bits == 4 and zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))  # each row begins with a byte of its own
    return Rounded(
        _halves_joined(codes.to(torch.uint8).numpy(), bits),
        np.ascontiguousarray(scales.flatten(1).numpy()),
        _halves_joined(zeros, bits),
    )


def _halves_joined(values: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """4 bits: two values a byte, the earlier in the lower half."""
    if bits == 8:
        return values
    joined: np.ndarray[Any, Any] = values[..., ::2] | (values[..., 1::2] << 4)
    return joined
