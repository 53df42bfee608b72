"""The sixteen values of NF4 (4-bit NormalFloat), as bitsandbytes and ONNX Runtime store it."""

from __future__ import annotations

from typing import Any

import numpy as np

# QLoRA (Dettmers et al. 2023), appendix E: float32 as in both libraries' tables.
NF4_CODES = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)
# How wide the range is that is rounded to a code; of the outermost, the distance to its neighbour.
NF4_STEPS = np.gradient(NF4_CODES).astype(np.float32)


def nf4_codes(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Codes of packed bytes, the earlier of two in the upper half: the last dimension doubles."""
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(*packed.shape[:-1], -1)


def nf4_values(packed: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 [outputs, groups, group size] of packed [outputs, groups, bytes] and the groups'
    largest absolute values [outputs, groups]."""
    values: np.ndarray[Any, Any] = NF4_CODES[nf4_codes(packed)] * scales[..., None]
    return values
