"""One matrix by GPTQ (Frantar et al. 2022, arXiv 2210.17323).

A column is rounded, and what that changes in the outputs is made up for, as far as the inputs'
correlations allow, by the columns that are not rounded yet. Columns with the largest inputs come
first, as most is left then that can make up for them: the group with the largest sum of squares,
in it the columns by their own, and so on (a group keeps its columns; the last, where it is short,
stays last). Each group's scale is set when its first column is reached, from the columns as they
are then: of a few candidates the one whose errors, weighed as GPTQ will weigh them, are least.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgetune.optimize.rounding.scales import row_steps, to_steps
from edgetune.optimize.widths import Width

# Of the mean diagonal of the Hessian, as in the paper.
DAMPING = 0.01
# Columns that are worked on before the rest are brought up to date.
_LAZY_COLUMNS = 128
# Of the range that holds all of a group; a shorter one cuts its ends and is finer in between.
_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
# Of a row's largest scale before anything is rounded, where scales are whole numbers of a step:
# what columns make up for may widen a later group.
_ROOM = 1.25


@dataclass(frozen=True)
class Solved:
    """`codes` uint8 [outputs, inputs], `scales` float32 [outputs, groups], `zero_points` uint8
    [outputs, groups], or null where the middle code stands for zero; `steps` float32 [outputs, 1],
    or null, as in a `Rounded`."""

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    steps: torch.Tensor | None = None

    def values(self, width: Width) -> torch.Tensor:
        """What the codes stand for, float32 [outputs, inputs]."""
        assert width.group_size is not None
        group = torch.arange(self.codes.shape[1]) // width.group_size
        zeros = 2 ** (width.bits - 1) if self.zero_points is None else self.zero_points[:, group]
        return (self.codes.float() - zeros) * self.scales[:, group]


@dataclass(frozen=True)
class Factors:
    """`order`: the columns as they will be rounded, int64 [inputs]; `upper`: how the error of one,
    in this order, is spread over the later ones, float32 [inputs, inputs]."""

    order: torch.Tensor
    upper: torch.Tensor


def error_factors(hessian: torch.Tensor, group_size: int) -> Factors:
    """The order of columns, and the upper Cholesky factor of the damped Hessian's inverse in it.

    `hessian`: Σ x·xᵀ over the calibration's inputs. Computed in float64: an input that is a sum of
    others would otherwise be lost in rounding.
    """
    order = column_order(hessian.diagonal(), group_size)
    # Ordered before it is widened: the copies between are half as large.
    damped = hessian[order][:, order].double()
    mean = float(damped.diagonal().mean())
    # Inputs that are all zero: every rounding is as good as another, and the nearest is taken.
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    del damped
    return Factors(order, torch.linalg.cholesky(inverse, upper=True).float())


def column_order(squares: torch.Tensor, group_size: int) -> torch.Tensor:
    """Columns, int64 [inputs], groups whole and the heaviest first, and so within each; `squares`
    [inputs]: Σ x² of each column's inputs. Equals stay in their order."""
    inputs = len(squares)
    parts = torch.arange(inputs).split(group_size)
    whole = len(parts) if inputs % group_size == 0 else len(parts) - 1
    sums = torch.stack([squares[part].sum() for part in parts])
    heaviest = torch.argsort(sums[:whole], descending=True, stable=True).tolist()
    return torch.cat(
        [
            part[torch.argsort(squares[part], descending=True, stable=True)]
            for part in (parts[number] for number in (*heaviest, *range(whole, len(parts))))
        ]
    )


def solve(weight: torch.Tensor, factors: Factors, width: Width) -> Solved:
    """Round a weight [outputs, inputs], float32, given `error_factors` of its inputs for groups of
    this size."""
    assert width.group_size is not None
    outputs, inputs = weight.shape
    lazy = max(_LAZY_COLUMNS, width.group_size)  # a group is never cut
    left = weight.T[factors.order]  # a column is a row of this
    codes = torch.empty((inputs, outputs), dtype=torch.uint8)
    steps = _steps_for(weight, width) if width.scales_in_steps else None
    grids: list[tuple[torch.Tensor, torch.Tensor]] = []
    for first in range(0, inputs, lazy):
        last = min(first + lazy, inputs)
        factor = factors.upper[first:last, first:last]
        errors = _round_columns(left[first:last], factor, width, steps, codes[first:last], grids)
        left[last:].addmm_(factors.upper[first:last, last:].T, errors, alpha=-1)
    # In the matrix's own order again.
    back = torch.argsort(factors.order[:: width.group_size] // width.group_size)
    scales, zeros = (torch.stack(parts, 1)[:, back] for parts in zip(*grids, strict=True))
    codes = codes[torch.argsort(factors.order)].T.contiguous()
    points = None if width.symmetric else zeros.to(torch.uint8)
    return Solved(codes, scales, points, steps)


def _steps_for(weight: torch.Tensor, width: Width) -> torch.Tensor:
    """[outputs, 1]"""
    assert width.group_size is not None
    parts = weight.T.split(width.group_size)
    scales = torch.stack([whole_range(part, width)[0] for part in parts], 1)
    return row_steps(scales * _ROOM)


def _round_columns(
    block: torch.Tensor,
    factor: torch.Tensor,
    width: Width,
    steps: torch.Tensor | None,
    codes: torch.Tensor,
    grids: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Round columns [columns, outputs] one after the other into `codes`, each group's grid into
    `grids`; the errors that the later columns are to make up for."""
    assert width.group_size is not None
    errors = torch.empty_like(block)
    for column, values in enumerate(block):
        if column % width.group_size == 0:
            group = slice(column, column + width.group_size)
            # What an error in a column costs, once the later ones have made up for it.
            scale, zero = grid(block[group], width, factor.diagonal()[group].pow(-2), steps)
            inverse = torch.where(scale == 0, scale, 1 / scale)
            grids.append((scale, zero))
        code = (values * inverse + zero).round_().clamp_(0, 2**width.bits - 1)
        codes[column] = code.to(torch.uint8)
        errors[column] = (values - (code - zero) * scale) / factor[column, column]
        block[column + 1 :].addr_(factor[column, column + 1 :], errors[column], alpha=-1)
    return errors


def grid(
    group: torch.Tensor, width: Width, costs: torch.Tensor, steps: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale [outputs], zero point [outputs]) of a group's columns [columns, outputs], of which a
    squared error counts `costs` [columns] times; `steps`: of the scales, [outputs, 1]."""
    scale, zero = whole_range(group, width)
    signs = (1, -1) if width.symmetric else (1,)
    least = torch.full_like(scale, torch.inf)
    best = scale
    for share in (sign * part for sign in signs for part in _RANGES):
        candidate = scale * share
        if steps is not None:
            # A range that is cut by a hundredth loses a whole code at 8 bits.
            candidate = to_steps(candidate, steps[:, 0], up=abs(share) == 1)
        codes = (group / candidate.where(candidate != 0, 1) + zero).round_()
        errors = (codes.clamp_(0, 2**width.bits - 1) - zero).mul_(candidate).sub_(group)
        cost = costs @ errors.square_()
        best = candidate.where(cost < least, best)
        least = torch.minimum(cost, least)
    return best, zero


def whole_range(group: torch.Tensor, width: Width) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale [outputs], zero point [outputs]) that hold a group's columns [columns, outputs].

    Without zero points the value of largest magnitude becomes the lowest code, which has no
    counterpart at the other end (the scale has its sign); with them the range with zero is covered.
    """
    levels = 2**width.bits - 1
    if width.symmetric:
        middle = (levels + 1) // 2
        low, high = group.amin(0), group.amax(0)
        largest = torch.where(high > -low, high, low)
        return largest / -middle, torch.full_like(largest, middle)
    low, high = group.amin(0).clamp(max=0), group.amax(0).clamp(min=0)
    scale = (high - low) / levels
    zero = torch.where(scale == 0, scale, -low / scale).round().clamp(0, levels)
    return scale, zero
