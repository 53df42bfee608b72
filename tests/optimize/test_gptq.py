"""GPTQ of one matrix against a plain reference, and what comes of a whole model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.optimize.widths import Width

torch = pytest.importorskip("torch")

W4 = Width(4, 32, "gptq")
WIDTHS = [
    W4,
    Width(8, 32, "gptq"),
    Width(4, 32, "gptq", symmetric=False),
    Width(4, 256, "gptq"),
    Width(4, 32, "gptq", scale_bits=8),
    Width(8, 32, "gptq", scale_bits=8),
    Width(4, 32, "gptq", symmetric=False, scale_bits=8),
]


def name_of(width: Width) -> str:
    return f"{width.name}-{width.symmetric}-{width.scale_bits}"


def problem(seed: int, outputs: int = 24, inputs: int = 96) -> tuple[Any, Any]:
    """A weight, and the Hessian of correlated inputs whose sizes differ much."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw) / math.sqrt(inputs) + torch.eye(inputs)
    sizes = torch.exp(torch.randn(inputs, generator=draw))
    given = torch.randn(512, inputs, generator=draw) @ mix * sizes
    return torch.randn(outputs, inputs, generator=draw), given.T @ given


def loss(weight: Any, rounded: Any, hessian: Any) -> float:
    """Squared error of the outputs on the calibration's inputs."""
    error = (weight - rounded).double()
    return float(((error @ hessian.double()) * error).sum())


def to_nearest(weight: Any, width: Width) -> Any:
    from edgetune.optimize.rounding import ROUNDERS
    from edgetune.optimize.rounding.block import Block
    from edgetune.optimize.rounding.pack import unpack

    nearest = replace(width, algorithm="rtn")
    return unpack(ROUNDERS["rtn"](Block("m", 0, weight), nearest), width, weight.shape[1])


def brain_surgeon(weight: Any, hessian: Any, width: Width) -> Any:
    """Optimal brain quantization (Frantar & Alistarh 2022) with columns in a given order, one row
    at a time: after each column, the inverse of what is left of the Hessian is made anew."""
    from edgetune.optimize.gptq.solve import DAMPING, _steps_for, column_order, grid

    assert width.group_size is not None
    steps = _steps_for(weight, width) if width.scales_in_steps else None
    order = column_order(hessian.diagonal(), width.group_size)
    damped = hessian[order][:, order].double().numpy()
    damped = damped + DAMPING * np.diag(damped).mean() * np.eye(len(damped))
    left, inputs = weight[:, order].double().numpy().copy(), weight.shape[1]
    result = np.zeros_like(left)
    for column in range(inputs):
        if column % width.group_size == 0:
            end = min(column + width.group_size, inputs)
            group = torch.from_numpy(left[:, column:end].T).float()
            costs = [1 / np.linalg.inv(damped[n:, n:])[0, 0] for n in range(column, end)]
            found = grid(group, width, torch.tensor(costs, dtype=torch.float32), steps)
            scale, zero = (part.double().numpy() for part in found)
        inverse = np.linalg.inv(damped[column:, column:])
        code = np.clip(np.round(left[:, column] / scale + zero), 0, 2**width.bits - 1)
        result[:, column] = (code - zero) * scale
        error = (left[:, column] - result[:, column]) / inverse[0, 0]
        left[:, column:] -= np.outer(error, inverse[0])
    return torch.from_numpy(result).float()[:, torch.argsort(order)]


@pytest.mark.parametrize("width", WIDTHS, ids=name_of)
def test_it_is_optimal_brain_quantization_in_the_order_of_columns(width: Width) -> None:
    from edgetune.optimize.gptq.solve import error_factors, solve

    weight, hessian = problem(0)
    solved = solve(weight, error_factors(hessian, width.group_size or 0), width)
    expected = brain_surgeon(weight, hessian, width)
    # In float32 a value may fall to the other side of a rounding; and then moves those after it.
    same = torch.isclose(solved.values(width), expected, rtol=1e-3, atol=1e-4).float().mean()
    assert float(same) > 0.98
    found, wanted = (loss(weight, it, hessian) for it in (solved.values(width), expected))
    assert found == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("width", WIDTHS, ids=name_of)
def test_the_outputs_are_nearer_than_rounded_to_nearest(width: Width) -> None:
    from edgetune.optimize.gptq.solve import error_factors, solve

    for seed in range(12):
        weight, hessian = problem(seed, inputs=80)  # the last group is short
        factors = error_factors(hessian, width.group_size or 0)
        found = loss(weight, solve(weight, factors, width).values(width), hessian)
        assert found < 0.8 * loss(weight, to_nearest(weight, width), hessian), seed


def test_without_correlations_it_rounds_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a grid that is as good as that of the whole range, or better."""
    from edgetune.optimize.gptq import solve as module

    weight, _ = problem(3)
    nearest = to_nearest(weight, W4)
    hessians = (torch.eye(96), torch.zeros(96, 96))
    factors = [module.error_factors(hessian, 32) for hessian in hessians]
    for factor in factors:
        found = module.solve(weight, factor, W4)
        error, worst = found.values(W4) - weight, (nearest - weight).square()
        groups = error.square().reshape(24, 3, 32).sum(2)
        assert bool((groups <= worst.reshape(24, 3, 32).sum(2) * 1.0001).all())
        assert float(groups.sum()) < 0.95 * float(worst.sum())
    monkeypatch.setattr(module, "_RANGES", (1.0,))
    for factor in factors:
        found = module.solve(weight, factor, W4)
        assert float((found.values(W4) - weight).norm()) <= float((nearest - weight).norm())


def test_the_heaviest_group_comes_first_and_the_heaviest_column_in_it() -> None:
    from edgetune.optimize.gptq.solve import column_order

    squares = torch.tensor([1.0, 2.0, 9.0, 3.0, 5.0, 5.0, 100.0])  # the last group is short
    assert column_order(squares, 2).tolist() == [2, 3, 4, 5, 1, 0, 6]
    assert column_order(squares, 8).tolist() == [6, 2, 4, 5, 3, 1, 0]
    assert column_order(torch.ones(5), 2).tolist() == [0, 1, 2, 3, 4]


def test_scales_in_steps_are_whole_numbers_of_them() -> None:
    from edgetune.optimize.gptq.solve import error_factors, solve
    from edgetune.optimize.rounding.scales import counts_of

    """And cost next to nothing, in rows of very different size."""
    for width in (width for width in WIDTHS if width.scales_in_steps):
        plain = replace(width, scale_bits=32)
        lost = best = 0.0
        for seed in range(6):
            weight, hessian = problem(seed)
            weight[3] *= 1e-3
            factors = error_factors(hessian, 32)
            solved = solve(weight, factors, width)
            assert solved.steps is not None
            counts = counts_of(solved.scales.numpy(), solved.steps.numpy())
            assert np.array_equal(counts.astype(np.float32) * solved.steps.numpy(), solved.scales)
            assert np.abs(counts).max() > 60
            lost += loss(weight, solved.values(width), hessian)
            best += loss(weight, solve(weight, factors, plain).values(plain), hessian)
        assert lost < 1.1 * best


def test_an_error_where_much_comes_in_costs_more() -> None:
    """The group's scale gives way to the columns that are worth it."""
    from edgetune.optimize.gptq.solve import grid

    group = torch.full((32, 1), 0.35)
    group[0] = 2.0
    for costly, wanted in ((0, 2.0), (1, 0.35)):
        costs = torch.full((32,), 1e-6)
        costs[costly] = 1.0
        scale, zero = grid(group, W4, costs)
        value = group[costly] / scale
        code = (value + zero).round().clamp(0, 15)
        assert float((code - zero) * scale) == pytest.approx(wanted, abs=0.02)


def test_columns_of_zeros_stay_zero() -> None:
    from edgetune.optimize.gptq.solve import error_factors, solve

    weight, hessian = problem(4)
    weight[:, 32:64] = 0
    hessian[32:64], hessian[:, 32:64] = 0, 0
    solved = solve(weight, error_factors(hessian, 32), W4)
    assert torch.equal(solved.values(W4)[:, 32:64], weight[:, 32:64])
    assert bool(torch.isfinite(solved.scales).all())


@pytest.mark.parametrize("width", WIDTHS, ids=name_of)
def test_packed_as_onnxruntime_packs(width: Width) -> None:
    """Rounded to nearest by ONNX Runtime, unpacked and packed again: the same bytes."""
    from edgetune.optimize.rounding import ROUNDERS
    from edgetune.optimize.rounding.block import Block
    from edgetune.optimize.rounding.pack import pack, unpack

    weight, _ = problem(5, inputs=80)
    assert width.group_size is not None
    rounded = ROUNDERS["rtn"](Block("m", 0, weight), replace(width, algorithm="rtn"))
    values = unpack(rounded, width, 80)
    points = rounded.zero_points
    zeros = np.full(rounded.scales.shape, 2 ** (width.bits - 1), dtype=np.uint8)
    if points is not None and width.bits == 4:
        halves = np.stack([points & 15, points >> 4], axis=-1).reshape(len(points), -1)
        zeros = np.ascontiguousarray(halves[:, : zeros.shape[1]])
    group = np.arange(80) // width.group_size
    codes = np.rint(values.numpy() / rounded.scales[:, group]) + zeros[:, group]
    again = pack(codes.astype(np.uint8), rounded.scales, None if width.symmetric else zeros, width)
    assert np.array_equal(again.packed[:, :-1], rounded.packed[:, :-1])
    assert torch.equal(unpack(again, width, 80), values)
    if points is not None:
        assert again.zero_points is not None
        assert np.array_equal(again.zero_points, points)


TEXTS = [[5 + (7 * n * k) % 250 for k in range(1, 40)] for n in range(1, 9)]


def quantized(checkpoint: Path, folder: Path, **rules: str) -> Path:
    from edgetune.optimize.gptq.quantize import quantize_layers
    from edgetune.optimize.schemes import SCHEMES, make_widths

    widths = make_widths(SCHEMES["w4a16-gptq"], 16, rules)
    quantize_layers(checkpoint, TEXTS, widths, folder, lambda _: None)
    return folder
