"""Rounding to nearest: a group's largest value gives its scale.

With float32 scales ONNX Runtime's own function does it. With scales in 8 bits a group has the next
scale that holds it, without zero points of the sign that ONNX Runtime gives it (the value of
largest magnitude is at the lowest code).
"""

from __future__ import annotations

import numpy as np
import torch
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.rounding.pack import pack_groups
from edgetune.optimize.rounding.scales import row_steps, to_steps
from edgetune.optimize.widths import Width

_KERNELS = {4: quantize_matmul_4bits, 8: quantize_matmul_8bits}


def round_block(block: Block, width: Width) -> Rounded:
    """A last short group is filled up with zeros. Raises ValueError for a width without groups."""
    if width.group_size is None:
        msg = f"{block.module}: {width.name} has no groups to round"
        raise ValueError(msg)
    if width.scales_in_steps:
        return _in_steps(block, width, width.group_size)
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


def _in_steps(block: Block, width: Width, group_size: int) -> Rounded:
    outputs, inputs = block.values.shape
    groups, most = -(-inputs // group_size), 2**width.bits - 1
    values = torch.zeros((outputs, groups * group_size), dtype=torch.float32)
    values[:, :inputs].copy_(block.values)
    values = values.reshape(outputs, groups, group_size)
    low, high = values.amin(2), values.amax(2)
    if width.symmetric:
        middle = 2 ** (width.bits - 1)
        wanted = torch.where(high > -low, high, low) / -middle
        zero = torch.full_like(wanted, middle)
    else:
        wanted = (high.clamp_(min=0) - low.clamp_(max=0)) / most
    steps = row_steps(wanted)
    scales = to_steps(wanted, steps, up=True)
    if not width.symmetric:
        zero = (-low / scales).nan_to_num_(0).round_().clamp_(0, most)
    codes = (values / scales[:, :, None]).nan_to_num_(0).round_().add_(zero[:, :, None])
    return pack_groups(
        codes.clamp_(0, most).to(torch.uint8).numpy(),
        scales.numpy(),
        None if width.symmetric else zero.to(torch.uint8).numpy(),
        width.bits,
        steps.numpy(),
    )
