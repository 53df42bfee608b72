"""k-quant: nearer than plain rounding and than ONNX Runtime's own function, whatever the group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgetune.optimize.rounding import ROUNDERS
from edgetune.optimize.rounding.block import Block
from edgetune.optimize.widths import Width


def dequantized(values: torch.Tensor, width: Width) -> np.ndarray[Any, Any]:
    """What a block is after rounding, [outputs, groups, group size]."""
    found = ROUNDERS[str(width.algorithm)](Block("w", 0, values), width)
    codes, zeros = found.packed, found.zero_points
    assert zeros is not None
    if width.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
        zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(len(zeros), -1)
    groups = codes.shape[1]
    whole: np.ndarray[Any, Any] = codes - zeros[:, :groups, None].astype(np.float64)
    return whole * found.scales[:, :, None]


def weighted_error(values: torch.Tensor, found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """k-quant's own measure, of each group."""
    exact = values.numpy().astype(np.float64).reshape(found.shape)
    weights = np.sqrt((exact**2).mean(-1, keepdims=True)) + np.abs(exact)
    error: np.ndarray[Any, Any] = (weights * (found - exact) ** 2).sum(-1)
    return error


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, 64), (8, 32)])
def test_it_is_nearer_than_onnxruntimes_function(bits: int, group: int) -> None:
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    values = random(8, 9 * group)  # an odd number of groups
    ours = weighted_error(values, dequantized(values, Width(bits, group, "kquant", False)))
    codes, scales, zeros = quant_tensor_k_quant_cpu(values.numpy(), bits, group)
    stored = scales.astype(np.float32).astype(np.float64) * (codes - zeros.astype(np.float64))
    theirs = weighted_error(values, stored.reshape(8, 9, group))
    assert ours.sum() <= theirs.sum() * (1 + 1e-6)
    plain = weighted_error(values, dequantized(values, Width(bits, group, "rtn", False)))
    assert ours.sum() < 0.95 * plain.sum()
    assert (ours <= plain * (1 + 1e-5)).mean() > 0.9


@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_one_sign_is_kept(sign: int) -> None:
    """ONNX Runtime's function, whose range begins at the smallest value, makes 0.1 of all of it."""
    values = sign * (1 + 0.1 * torch.rand(4, 32, generator=torch.Generator().manual_seed(0)))
    found = dequantized(values, Width(4, 32, "kquant", False)).reshape(4, 32)
    assert np.abs(found - values.numpy()).max() < 0.06
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    codes, scales, zeros = quant_tensor_k_quant_cpu(values.numpy(), 4, 32)
    assert np.abs(scales * (codes - zeros) - values.numpy()).max() > 0.5


@pytest.mark.parametrize("algorithm", ["kquant", "hqq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_that_cannot_be_fitted(algorithm: str, bits: int) -> None:
    """Zeros stay zeros, equal values are kept, a single value too, a short group is filled up."""
    values = torch.zeros(4, 40)
    values[1], values[2, 3], values[3] = 0.25, -2.0, -1e-30
    width = Width(bits, 32, algorithm, symmetric=False)
    found = dequantized(values, width).reshape(4, 64)
    assert found[:, :40] == pytest.approx(values.numpy(), abs=1e-6)
    assert not found[:, 40:].any()
    assert not found[0].any()


@pytest.mark.parametrize("algorithm", ["kquant", "hqq"])
def test_rows_do_not_depend_on_the_block(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune.optimize.rounding import grids

    values, width = random(7, 96), Width(4, 32, algorithm, symmetric=False)
    whole = dequantized(values, width)
    monkeypatch.setattr(grids, "_CHUNK_VALUES", 200)
    assert np.array_equal(dequantized(values, width), whole)
    assert np.array_equal(dequantized(values[3:5], width), whole[3:5])


@pytest.mark.parametrize("algorithm", ["kquant", "hqq"])
def test_what_it_cannot_do_is_told(algorithm: str) -> None:
    block = Block("w", 0, random(2, 32))
    with pytest.raises(ValueError, match=r"w: .* has zero points"):
        ROUNDERS[algorithm](block, Width(4, 32, algorithm, symmetric=True))
    with pytest.raises(ValueError, match="w: fp32 has no groups"):
        ROUNDERS[algorithm](block, Width(32, None, None, symmetric=False))
