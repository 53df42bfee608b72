"""Scales in 8 bits: a group's is a whole number, 1 … 127 of either sign, of its row's step.

A float32 for every 32 weights is a whole bit a weight; this is a quarter of one, and the row's.
QLoRA's double quantization (Dettmers et al. 2023, section 3) stores scales likewise, in blocks of
256 with their mean taken off; llama.cpp's k-quants have 6 bits. No product takes such scales: the
graph multiplies them out, which ONNX Runtime does once, as it opens the graph (constant folding),
so they cost nothing while it runs. Codes are rounded for the scales as they are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

MOST = 127


def row_steps(scales: torch.Tensor) -> torch.Tensor:
    """The step of each row, float32 [outputs, 1], of what its scales [outputs, groups] would be;
    1 for a row of zeros."""
    largest = scales.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest / MOST, 1.0)


def to_steps(scales: torch.Tensor, steps: torch.Tensor, *, up: bool = False) -> torch.Tensor:
    """The nearest scales that are whole numbers of steps; 0 for a scale of 0 alone. `up`: the next
    ones that are no smaller in magnitude."""
    counts = scales.abs() / steps
    # A whole number is divided to a hair above or below itself.
    counts = (counts - 1e-4).ceil_() if up else counts.round_()
    return counts.clamp_(1, MOST).mul_(scales.sign()).mul_(steps)


def counts_of(scales: np.ndarray[Any, Any], steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How many steps of its row each scale is, int8 [outputs, groups]. The product of the two, in
    float32, is the very scale."""
    found: np.ndarray[Any, Any] = np.rint(scales / steps).astype(np.int8)
    return found
