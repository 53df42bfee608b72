"""Tensors of a graph that are made in blocks when they are written, and never held whole.

A matrix of the graph is a list of torch tensors in the checkpoint's layout (rows are outputs, and
usually mapped pages of a file), one under the other, transposed where the operator wants it so.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

# Of float32 values, where a matrix is worked on in blocks.
_BLOCK_BYTES = 16 << 20
_KERNELS = {4: quantize_matmul_4bits, 8: quantize_matmul_8bits}

Blocks = Callable[[], Iterator[np.ndarray[Any, Any]]]


class Matrix:
    """Stacked checkpoint matrices (rows are outputs), and what frees the pages read from them."""

    def __init__(
        self, parts: Sequence[torch.Tensor], release: Callable[[], None] = lambda: None
    ) -> None:
        self.parts = tuple(parts)
        self.release = release
        self.outputs = sum(part.shape[0] for part in self.parts)
        self.inputs = int(self.parts[0].shape[1])

    @property
    def shape(self) -> torch.Size:
        """(outputs, inputs), as of a linear layer's weight."""
        return torch.Size((self.outputs, self.inputs))

    def reshape(self, *shape: int) -> Matrix:
        """Itself, for the builder's no-op reshape of packed weights. Raises ValueError else."""
        if shape != tuple(self.shape):
            msg = f"a matrix of {tuple(self.shape)} cannot become {shape}"
            raise ValueError(msg)
        return self

    @property
    def T(self) -> Transposed:
        """The same matrix, inputs first."""
        return Transposed(self)

    def rows(self) -> Iterator[torch.Tensor]:
        """Blocks of outputs as they are stored, [outputs, inputs]; the pages of each are freed
        after it."""
        height = max(1, _BLOCK_BYTES // (4 * self.inputs))
        for part in self.parts:
            for start in range(0, part.shape[0], height):
                yield part[start : start + height]
                self.release()

    def columns(self) -> Iterator[torch.Tensor]:
        """Blocks of inputs in float32, transposed: [inputs, outputs]."""
        width = max(1, _BLOCK_BYTES // (4 * self.outputs))
        for start in range(0, self.inputs, width):
            pieces = [part[:, start : start + width].to(torch.float32) for part in self.parts]
            yield torch.cat(pieces).T
            self.release()


class Transposed:
    """A `Matrix` as the graph's products want it: inputs first."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self.shape = torch.Size((matrix.inputs, matrix.outputs))


class Streamed(ir.LazyTensor):  # type: ignore[misc]
    """A lazy tensor that is written block by block instead of being evaluated whole."""

    def __init__(self, name: str, dtype: ir.DataType, shape: Sequence[int], blocks: Blocks) -> None:
        def whole() -> ir.Tensor:
            flat = np.concatenate([block.reshape(-1) for block in blocks()])
            return ir.Tensor(flat.reshape(tuple(shape)), name=name)

        super().__init__(whole, dtype, ir.Shape(shape), name=name)
        self._blocks = blocks

    def tobytes(self) -> bytes:
        """The whole tensor's bytes."""
        return b"".join(np.ascontiguousarray(block).tobytes() for block in self._blocks())

    def tofile(self, file: Any) -> None:
        """Write the bytes of one block after the other."""
        for block in self._blocks():
            file.write(np.ascontiguousarray(block).data)


def float_tensor(name: str, source: Matrix | Transposed) -> Streamed:
    """A matrix in float32, in the source's layout."""

    def blocks() -> Iterator[np.ndarray[Any, Any]]:
        if isinstance(source, Transposed):
            return (block.numpy() for block in source.matrix.columns())
        return (block.to(torch.float32).numpy() for block in source.rows())

    tensor = Streamed(name, ir.DataType.FLOAT, tuple(source.shape), blocks)
    tensor.meta["matrix"] = source.matrix if isinstance(source, Transposed) else source
    return tensor


def quantized_tensors(
    name: str, matrix: Matrix, bits: int, group_size: int
) -> tuple[Streamed, Streamed]:
    """The packed weight [outputs, groups, bytes a group] (uint8) and the scales [outputs, groups]
    (float32) of a MatMulNBits, symmetric, rounded to nearest by ONNX Runtime's own function.

    Names and layout are those of onnxruntime.quantization's DefaultWeightOnlyQuantizer. The scales
    are kept from making the packed weight until they are asked for, so that each is made once when
    they are written in this order.
    """
    groups = -(-matrix.inputs // group_size)
    kept: list[np.ndarray[Any, Any]] = []

    def packed_blocks() -> Iterator[np.ndarray[Any, Any]]:
        kept.clear()
        scratch: dict[int, torch.Tensor] = {}
        for rows in matrix.rows():
            packed, scales = quantize_rows(rows, bits, group_size, scratch)
            kept.append(scales)
            yield packed

    def scale_blocks() -> Iterator[np.ndarray[Any, Any]]:
        if not kept:
            for _ in packed_blocks():
                pass
        yield from kept
        kept.clear()

    shape = (matrix.outputs, groups, group_size * bits // 8)
    return (
        Streamed(f"{name}_Q{bits}", ir.DataType.UINT8, shape, packed_blocks),
        Streamed(f"{name}_scales", ir.DataType.FLOAT, shape[:2], scale_blocks),
    )


def return_freed_memory() -> None:
    """Have the C library give blocks above 4 MB back to the system as soon as they are freed.

    glibc raises that limit to 32 MB by itself, and the blocks made here then fragment its heap
    (measured at 8 bits: between 0.65 and 1.09 GB from run to run, with this always 0.65).
    """
    m_mmap_threshold = -3
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 4 << 20)


def quantize_rows(
    rows: torch.Tensor, bits: int, group_size: int, scratch: dict[int, torch.Tensor] | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(packed [outputs, groups, bytes a group], scales [outputs, groups]) of rows [outputs,
    inputs] of any float type; a last short group is padded with zeros.

    `scratch` keeps the transposed float32 copy for the next block of as many rows.
    """
    outputs, inputs = rows.shape
    groups = -(-inputs // group_size)
    scratch = {} if scratch is None else scratch
    if outputs not in scratch:
        scratch.clear()
        scratch[outputs] = torch.zeros((groups * group_size, outputs), dtype=torch.float32)
    scratch[outputs][:inputs].copy_(rows.T)
    packed = np.zeros((outputs, groups, group_size * bits // 8), dtype=np.uint8)
    scales = np.zeros((outputs, groups), dtype=np.float32)
    zero_points = np.zeros((outputs, -(-groups * bits // 8)), dtype=np.uint8)
    values = scratch[outputs].numpy()
    _KERNELS[bits](packed, values, scales, zero_points, group_size, outputs, inputs, True)
    return packed, scales
