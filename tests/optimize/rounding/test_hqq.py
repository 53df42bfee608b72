"""HQQ: outliers count less than in rounding to nearest, and what is kept is the best turn."""

from __future__ import annotations

import numpy as np
import torch

from edgetune.optimize.widths import Width
from tests.optimize.rounding.test_kquant import dequantized, random


def test_its_own_measure_is_smaller_than_plain_roundings() -> None:
    values = random(16, 256)
    values[:, ::37] *= 5  # outliers
    exact = values.numpy().reshape(16, 8, 32)

    def measure(algorithm: str, power: float) -> np.ndarray:  # type: ignore[type-arg]
        found = dequantized(values, Width(4, 32, algorithm, symmetric=False))
        total: np.ndarray = (np.abs(found - exact) ** power).sum(-1)  # type: ignore[type-arg]
        return total

    ours, plain = measure("hqq", 0.7), measure("rtn", 0.7)
    assert (ours <= plain * (1 + 1e-4)).mean() > 0.9
    assert ours.sum() < 0.98 * plain.sum()


def test_the_scale_is_solved_for() -> None:
    """Values on a grid that the range alone does not give: the largest was cut to half a step."""
    steps = torch.arange(-8, 8).repeat(2).float()
    values = (0.01 * steps)[None].clone()
    values[0, 15] = 0.0745
    found = dequantized(values, Width(4, 32, "hqq", symmetric=False)).reshape(-1)
    off = np.abs(found - values.numpy()[0])
    assert np.median(off) < 1e-3
