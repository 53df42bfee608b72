"""A module's weight as a graph of some width would compute with it, and the noise of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from edgetune.checkpoint.graph_weights import values_of
from edgetune.optimize.rounding import ROUNDERS
from edgetune.optimize.rounding.block import Block
from edgetune.optimize.widths import Width
from edgetune.sensitivity.layers import InputSums

_BLOCK_VALUES = 1 << 22


def rounded_weight(module: str, weight: torch.Tensor, width: Width) -> torch.Tensor:
    """float32 [outputs, inputs]; the weight itself for a float width."""
    if not width.quantized:
        return weight
    return torch.cat([values for _, values in _blocks(module, weight, width)])


def noise_energy(
    module: str, weight: torch.Tensor, width: Width, sums: InputSums, share: float = 1.0
) -> float:
    """Σ over outputs and tokens of the squared error that rounding adds, to first order in
    independent errors: of the weights Σⱼ (Σ x²ⱼ) · Σᵢ (Q(W) − W)²ᵢⱼ, of which a better rounding
    leaves `share`, and of inputs that the product rounds Σⱼ (Σ (Q(x) − x)²ⱼ) · Σᵢ W²ᵢⱼ."""
    if not width.quantized:
        return 0.0
    errors = sums.errors.get(width.group_size or 0)
    total = 0.0
    for rows, values in _blocks(module, weight, width):
        total += share * float((values - rows).double().square().sum(0) @ sums.squares)
        if errors is not None:
            total += float(rows.double().square().sum(0) @ errors)
    return total


def _blocks(
    module: str, weight: torch.Tensor, width: Width
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(rows, the same rounded) of blocks of the weight."""
    rounder = ROUNDERS[str(width.algorithm)]
    height = max(1, _BLOCK_VALUES // weight.shape[1])
    scratch: dict[Any, Any] = {}
    for start in range(0, weight.shape[0], height):
        rows = weight[start : start + height]
        found = rounder(Block(module, start, rows, scratch), width)
        values = values_of(found.packed, found.scales, found.zero_points, width.bits)
        yield rows, values.flatten(1)[:, : weight.shape[1]]
