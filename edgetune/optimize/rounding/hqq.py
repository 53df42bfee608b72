"""HQQ, half-quadratic quantization, with whole zero points and the scale as what is solved for.

The method (Badri and Shaji 2023; ONNX Runtime's `HQQWeightOnlyQuantizer`) minimizes Σ |x − Q(x)|^p
of a group, p = 0.7, so that outliers count less, by turns: e = shrink(x − Q(x)), then the grid by
least squares on x − e, and β grows. Published, the scale stays and the zero point, a float, is
solved for. ONNX Runtime's processor kernels take float zero points only by unpacking the whole
matrix at each call, and the embedding's takes none; so here the zero point stays whole, and the
scale is solved for. Errors are shrunk in units of the group's first step, so that β means the same
in every matrix. Of all turns the one of the least Σ |x − Q(x)|^p is taken.
"""

from __future__ import annotations

import torch

from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.rounding.grids import Grid, round_groups
from edgetune.optimize.widths import Width

# ONNX Runtime's and the authors' own.
_NORM, _BETA, _GROWTH, _TURNS = 0.7, 10.0, 1.01, 20


def round_block(block: Block, width: Width) -> Rounded:
    """As `grids.round_groups`, which raises ValueError for a width without zero points."""
    return round_groups(block, width, _solved)


def _solved(values: torch.Tensor, most: int) -> Grid:
    """(codes, scales, zero points) of groups along the last dimension."""
    low = values.amin(-1, keepdim=True).clamp(max=0)
    first = (values.amax(-1, keepdim=True).clamp(min=0) - low) / most
    zero = (-low / first).nan_to_num_(0).round_().clamp_(0, most)
    units = (values / first).nan_to_num_(0)
    # In units of the first step from here on.
    scale = torch.ones_like(first)
    best_scale, least = scale, torch.full_like(first, torch.inf)
    beta = _BETA
    for _ in range(_TURNS):
        steps = _steps(units, scale, zero, most)
        off = units - steps * scale
        error = off.abs().pow(_NORM).sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best_scale = torch.where(better, scale, best_scale)
        squares = (steps * steps).sum(-1, keepdim=True)
        solved = ((units - _shrunk(off, beta)) * steps).sum(-1, keepdim=True) / squares
        scale = torch.where(squares > 0, solved, scale)
        beta *= _GROWTH
    codes = _steps(units, best_scale, zero, most) + zero
    return codes, best_scale * first, zero


def _steps(units: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, most: int) -> torch.Tensor:
    """The nearest codes, less the zero point."""
    return ((units / scale).round_() + zero).clamp_(0, most) - zero


def _shrunk(off: torch.Tensor, beta: float) -> torch.Tensor:
    """The proximal step of |e|^p: sign(e) · max(0, |e| − |e|^(p−1) / β)."""
    size = off.abs()
    return off.sign() * (size - (size + 1e-8).pow(_NORM - 1) / beta).clamp_(min=0)
