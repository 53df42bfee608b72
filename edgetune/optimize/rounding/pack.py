"""Codes as MatMulNBits stores them, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgetune.optimize.rounding.block import Rounded
from edgetune.optimize.widths import Width

_Array = np.ndarray[Any, Any]


def pack(
    codes: _Array,
    scales: _Array,
    zero_points: _Array | None,
    width: Width,
    steps: _Array | None = None,
) -> Rounded:
    """Codes uint8 [outputs, inputs], scales [outputs, groups], zero points uint8 [outputs, groups]
    and the scales' steps [outputs, 1] as a `Rounded`; a last short group is filled up with codes
    that stand for zero."""
    assert width.group_size is not None
    outputs, inputs = codes.shape
    groups = scales.shape[1]
    zeros = zero_points
    if zeros is None:
        zeros = np.full((outputs, groups), 2 ** (width.bits - 1), dtype=np.uint8)
    filled = np.repeat(zeros[:, -1:], groups * width.group_size - inputs, axis=1)
    whole = np.concatenate([codes, filled], axis=1).reshape(outputs, groups, width.group_size)
    return pack_groups(whole, scales, zero_points, width.bits, steps)


def pack_groups(
    codes: _Array,
    scales: _Array,
    zero_points: _Array | None,
    bits: int,
    steps: _Array | None = None,
) -> Rounded:
    """Codes uint8 of whole groups [outputs, groups, group size]; the rest as `pack` takes it."""
    points = None if zero_points is None else _halved(zero_points, bits)
    scales = np.ascontiguousarray(scales, dtype=np.float32)
    return Rounded(_halved(codes, bits), scales, points, steps)


def _halved(codes: _Array, bits: int) -> _Array:
    """Two codes of 4 bits a byte along the last axis, the earlier in the lower half; beside a last
    odd one stands the middle code, as ONNX Runtime's quantizer leaves it."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.full_like(codes[..., :1], 8)], axis=-1)
    packed: _Array = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed


def unpack(rounded: Rounded, width: Width, inputs: int) -> torch.Tensor:
    """What a `Rounded` stands for, float32 [outputs, inputs]."""
    packed, points = rounded.packed, rounded.zero_points
    outputs, groups = rounded.scales.shape
    if width.bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(outputs, groups, -1)
        if points is not None:
            points = np.stack([points & 15, points >> 4], axis=-1).reshape(outputs, -1)
    zeros = 2 ** (width.bits - 1) if points is None else points[:, :groups, None].astype(np.float32)
    values = (packed.astype(np.float32) - zeros) * rounded.scales[:, :, None]
    return torch.from_numpy(values.reshape(outputs, -1)[:, :inputs].copy())
