"""Tensors made in blocks equal those made whole."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune.optimize import streamed

    monkeypatch.setattr(streamed, "_BLOCK_BYTES", 4 * 3 * 40)  # three rows of 40 weights


def random(*shape: int, dtype: Any = None) -> Any:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.to(dtype or torch.float32)


def written(tensor: Any) -> bytes:
    file = io.BytesIO()
    tensor.tofile(file)
    assert file.getvalue() == tensor.tobytes() == tensor.numpy().tobytes()
    return file.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float_matrices(dtype: Any) -> None:
    from edgetune.optimize.streamed import Matrix, float_tensor

    parts = [random(5, 40, dtype=dtype), random(2, 40, dtype=dtype), random(4, 40, dtype=dtype)]
    whole = torch.cat(parts).float()
    matrix = Matrix(parts)
    assert written(float_tensor("w", matrix)) == whole.numpy().tobytes()
    assert written(float_tensor("w", matrix.T)) == whole.T.contiguous().numpy().tobytes()
    assert tuple(float_tensor("w", matrix.T).shape) == (40, 11)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [16, 32, 128])
def test_quantized_matrices_equal_onnxruntimes_quantizer(
    bits: int, group_size: int, symmetric: bool
) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    from edgetune.optimize.rounding import ROUNDERS
    from edgetune.optimize.streamed import Matrix, quantized_tensors
    from edgetune.optimize.widths import Width

    parts = [random(7, 40), random(4, 40)]
    settings = DefaultWeightOnlyQuantConfig(
        block_size=group_size, is_symmetric=symmetric, bits=bits
    )
    wanted, scales, zeros = DefaultWeightOnlyQuantizer(settings).qbits_block_quant(
        torch.cat(parts).T.contiguous().numpy()
    )
    width = Width(bits, group_size, "rtn", symmetric)
    tensors = quantized_tensors("w", Matrix(parts), width, ROUNDERS["rtn"])
    packed_tensor, scale_tensor = tensors[:2]
    assert tuple(packed_tensor.shape) == wanted.shape
    assert tuple(scale_tensor.shape) == scales.shape
    assert written(packed_tensor) == wanted.tobytes()
    # Kept from making the packed weight the first time, made anew after that.
    for _ in range(2):
        assert np.array_equal(scale_tensor.numpy(), scales)
        for zero_tensor in tensors[2:]:
            assert written(zero_tensor) == zeros.tobytes()


def test_pages_are_freed_after_each_block() -> None:
    from edgetune.optimize.streamed import Matrix, float_tensor

    freed: list[int] = []
    matrix = Matrix([random(7, 40)], lambda: freed.append(1))
    written(float_tensor("w", matrix))
    assert len(freed) == 3 * 3  # written three times above, in three blocks


def test_a_matrix_reshapes_to_itself_only() -> None:
    from edgetune.optimize.streamed import Matrix

    matrix = Matrix([random(7, 40)])
    assert matrix.reshape(7, 40) is matrix
    with pytest.raises(ValueError, match="cannot become"):
        matrix.reshape(40, 7)
