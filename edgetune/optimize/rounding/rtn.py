"""Rounding to nearest by ONNX Runtime's own function: a group's largest value gives its scale."""

from __future__ import annotations

import numpy as np
import torch
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.widths import Width

_KERNELS = {4: quantize_matmul_4bits, 8: quantize_matmul_8bits}


def round_block(block: Block, width: Width) -> Rounded:
    """A last short group is filled up with zeros. Raises ValueError for a width without groups."""
    if width.group_size is None:
        msg = f"{block.module}: {width.name} has no groups to round"
        raise ValueError(msg)
    outputs, inputs = block.values.shape
    bits, group_size = width.bits, width.group_size
    groups = -(-inputs // group_size)
    # The transposed float32 copy, kept for the next block of as many rows.
    kept = block.scratch
    if outputs not in kept:
        kept.clear()
        kept[outputs] = torch.zeros((groups * group_size, outputs), dtype=torch.float32)
    kept[outputs][:inputs].copy_(block.values.T)
    packed = np.zeros((outputs, groups, group_size * bits // 8), dtype=np.uint8)
    scales = np.zeros((outputs, groups), dtype=np.float32)
    zero_points = np.zeros((outputs, -(-groups * bits // 8)), dtype=np.uint8)
    values = kept[outputs].numpy()
    _KERNELS[bits](
        packed, values, scales, zero_points, group_size, outputs, inputs, width.symmetric
    )
    return Rounded(packed, scales, None if width.symmetric else zero_points)
