"""k-quant: of some twenty grids a group takes the one that its larger weights fit best.

The search is llama.cpp's (`make_qkx2_quants` in ggml-quants.c), as ONNX Runtime's
`quant_tensor_k_quant_cpu` has it. For a group x each grid begins with codes l of a step that is a
little finer or coarser than the group's range asks for; weighted least squares, with weights
w = rms(x) + |x|, then give the step d and the least value m of d · l + m ≈ x. Two things differ
from ONNX Runtime's function, which is not used for them: the range always holds zero, as
llama.cpp's does (without it a group of one sign is clipped to nothing), and what is compared is
the error of what will be stored, where m is a whole number of steps.
"""

from __future__ import annotations

import torch

from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.rounding.grids import Grid, round_groups
from edgetune.optimize.widths import Width

# llama.cpp's: the range in steps, 2^bits − 1, less one to plus one.
_GRIDS = tuple(0.1 * number - 1 for number in range(21))


def round_block(block: Block, width: Width) -> Rounded:
    """As `grids.round_groups`, which raises ValueError for a width without zero points."""
    return round_groups(block, width, _best_grid)


def _best_grid(values: torch.Tensor, most: int) -> Grid:
    """(codes, scales, zero points) of groups along the last dimension."""
    weights = values.square().mean(-1, keepdim=True).sqrt() + values.abs()
    low = values.amin(-1, keepdim=True).clamp(max=0)
    span = values.amax(-1, keepdim=True).clamp(min=0) - low
    best = _stored(values, span / most, low, most)
    least = _error(values, weights, best)
    for finer in _GRIDS:
        steps = ((values - low) * ((most + finer) / span)).nan_to_num_(0).round_().clamp_(0, most)
        grid = _stored(values, *_fitted(values, weights, steps), most)
        error = _error(values, weights, grid)
        better = error < least
        least = torch.where(better, error, least)
        best = tuple(torch.where(better, a, b) for a, b in zip(grid, best, strict=True))
    return best


def _fitted(
    values: torch.Tensor, weights: torch.Tensor, steps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d, m ≤ 0) of least Σ w (d · steps + m − x)²; not a number where the steps are all equal."""

    def total(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sum(-1, keepdim=True)

    weighted = weights * steps
    w, x, l1 = total(weights), total(weights * values), total(weighted)
    l2, xl = total(weighted * steps), total(weighted * values)
    determinant = w * l2 - l1 * l1
    step, least = (w * xl - x * l1) / determinant, (l2 * x - l1 * xl) / determinant
    above = least > 0
    return torch.where(above, xl / l2, step), torch.where(above, 0, least)


def _stored(values: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, most: int) -> Grid:
    """The nearest codes of a grid that begins about `low`. A group of zeros has the scale 0."""
    zero = (-low / scale).nan_to_num_(0).round_().clamp_(0, most)
    codes = ((values / scale).nan_to_num_(0).round_() + zero).clamp_(0, most)
    return codes, scale, zero


def _error(values: torch.Tensor, weights: torch.Tensor, grid: Grid) -> torch.Tensor:
    codes, scale, zero = grid
    return (weights * ((codes - zero) * scale - values).square()).sum(-1, keepdim=True)
