"""Scales in 8 bits: what is stored, what it costs, and that a running graph pays nothing for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetune.optimize.rounding import ROUNDERS
from edgetune.optimize.rounding.block import Block
from edgetune.optimize.rounding.pack import unpack
from edgetune.optimize.rounding.scales import MOST, counts_of, row_steps, to_steps
from edgetune.optimize.widths import Width
from tests.checkpoint.test_graph_weights import product

WIDTHS = [
    Width(4, 32, "rtn", scale_bits=8),
    Width(8, 32, "rtn", scale_bits=8),
    Width(8, 16, "rtn", symmetric=False, scale_bits=8),
    Width(4, 32, "kquant", symmetric=False, scale_bits=8),
    Width(4, 64, "hqq", symmetric=False, scale_bits=8),
]


def weight(inputs: int = 576) -> torch.Tensor:
    """Rows of very different size, some groups much smaller than the others of their row, one
    group and one row of zeros."""
    values = torch.randn(24, inputs, generator=torch.Generator().manual_seed(0))
    values *= torch.logspace(-4, 1, 24)[:, None]
    values[:, 64:96] *= 1e-3
    values[:, 128:192] = 0
    values[5] = 0
    return values


def test_a_scale_is_a_whole_number_of_its_rows_steps() -> None:
    scales = torch.tensor([[1.0, -0.5, 0.0041, 1e-6, 0.0], [0.0] * 5, [2e-30, 1e-30, 0, 0, 0]])
    steps = row_steps(scales)
    nearest, up = to_steps(scales, steps), to_steps(scales, steps, up=True)
    counts = counts_of(nearest.numpy(), steps.numpy())
    assert counts.dtype == np.int8
    # Nothing but zero is stored as zero.
    assert counts.tolist() == [[127, -64, 1, 1, 0], [0] * 5, [127, 64, 0, 0, 0]]
    for found in (nearest, up):
        again = counts_of(found.numpy(), steps.numpy()).astype(np.float32) * steps.numpy()
        assert np.array_equal(again, found.numpy())
    assert bool((up.abs() >= scales.abs() * (1 - 1e-5)).all())
    assert int(counts_of(up.numpy(), steps.numpy()).max()) == MOST


@pytest.mark.parametrize("width", WIDTHS, ids=lambda width: f"{width.algorithm}-{width.name}")
def test_they_cost_next_to_nothing(width: Width) -> None:
    values = weight()
    block = Block("w", 0, values)

    def error(width: Width) -> torch.Tensor:
        found = ROUNDERS[str(width.algorithm)](block, width)
        return (unpack(found, width, values.shape[1]) - values).square().sum(1)

    ours, theirs = error(width), error(replace(width, scale_bits=32))
    assert float(ours[5]) == 0
    rows = torch.arange(24) != 5
    assert float((ours[rows] / theirs[rows]).mean()) < 1.05
    found = ROUNDERS[str(width.algorithm)](block, width)
    assert found.steps is not None
    counts = counts_of(found.scales, found.steps)
    assert np.array_equal(counts.astype(np.float32) * found.steps, found.scales)


@pytest.mark.parametrize("width", WIDTHS, ids=lambda width: f"{width.algorithm}-{width.name}")
def test_rows_do_not_depend_on_the_block(width: Width) -> None:
    values, rounder = weight(), ROUNDERS[str(width.algorithm)]
    whole, part = rounder(Block("w", 0, values), width), rounder(Block("w", 3, values[3:9]), width)
    assert np.array_equal(part.packed, whole.packed[3:9])
    assert np.array_equal(part.scales, whole.scales[3:9])


def test_onnxruntime_multiplies_them_out_once(tmp_path: Path) -> None:
    """What runs has the product alone."""
    import onnx
    import onnxruntime as ort

    product(tmp_path, weight(), WIDTHS[0])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "opened.onnx")
    ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    before, after = (onnx.load(tmp_path / name).graph for name in ("model.onnx", "opened.onnx"))
    assert [node.op_type for node in before.node] == ["Cast", "Mul", "MatMulNBits"]
    assert [node.op_type for node in after.node] == ["MatMulNBits"]
