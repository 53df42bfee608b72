"""Tensors of a graph that are made in blocks when they are written, and never held whole.

A matrix of the graph is a list of torch tensors in the checkpoint's layout (rows are outputs, and
usually mapped pages of a file), one under the other, transposed where the operator wants it so.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgetune.optimize.rounding import Rounder
from edgetune.optimize.rounding.block import Block
from edgetune.optimize.rounding.scales import counts_of
from edgetune.optimize.widths import NF4, Width

# Of float32 values, where a matrix is worked on in blocks.
_BLOCK_BYTES = 16 << 20
# Of the name of scales that are stored as whole numbers of a step.
STEPS_SUFFIX = "_Q8"

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
        for number in range(len(self.parts)):
            for _, rows in self.rows_of(number):
                yield rows

    def rows_of(self, number: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row in the part, block) of one part."""
        part, height = self.parts[number], max(1, _BLOCK_BYTES // (4 * self.inputs))
        for start in range(0, part.shape[0], height):
            yield start, part[start : start + height]
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
    name: str,
    matrix: Matrix,
    width: Width,
    rounder: Rounder,
    places: Sequence[tuple[str, int]] = (),
) -> tuple[Streamed, ...]:
    """What a MatMulNBits takes beside its input: the packed weight [outputs, groups, bytes a group]
    (uint8), the scales [outputs, groups] (float32) and, where the width is not symmetric, the zero
    points (uint8 [outputs, bytes]). Of scales in 8 bits two tensors take their place: how many
    steps each is (int8), and the steps [outputs, 1] (float32).

    `places`: the module of each part of the matrix and the part's first row in it; `name` itself
    where there are none. Names and layout are those of onnxruntime.quantization's
    DefaultWeightOnlyQuantizer. Scales and zero points are kept from making the packed weight until
    they are asked for, so that each is made once when they are written in this order. A MatMulBnb4
    (NF4) takes both flat; the names are those of MatMulBnb4Quantizer.
    """
    assert width.group_size is not None
    groups = -(-matrix.inputs // width.group_size)
    places = places or tuple((name, 0) for _ in matrix.parts)
    kept: dict[str, list[np.ndarray[Any, Any]]] = {}

    def packed_blocks() -> Iterator[np.ndarray[Any, Any]]:
        kept.update(scales=[], steps=[], zeros=[])
        scratch: dict[Any, Any] = {}
        for number, (module, first) in enumerate(places):
            for start, rows in matrix.rows_of(number):
                found = rounder(Block(module, first + start, rows, scratch), width)
                if found.steps is None:
                    kept["scales"].append(found.scales)
                else:
                    kept["scales"].append(counts_of(found.scales, found.steps))
                    kept["steps"].append(found.steps)
                if found.zero_points is not None:
                    kept["zeros"].append(found.zero_points)
                yield found.packed

    def kept_blocks(what: str) -> Blocks:
        def blocks() -> Iterator[np.ndarray[Any, Any]]:
            if not kept.get(what):
                for _ in packed_blocks():
                    pass
            yield from kept.pop(what)

        return blocks

    shape: tuple[int, ...] = (matrix.outputs, groups, width.group_size * width.bits // 8)
    scales = shape[:2]
    names = (f"{name}_Q{width.bits}", f"{name}_scales")
    if width.algorithm == NF4:
        shape, scales = (math.prod(shape),), (math.prod(scales),)
        names = (f"{name}_Bnb4", f"{name}_absmax")
    tensors = [Streamed(names[0], ir.DataType.UINT8, shape, packed_blocks)]
    if width.scales_in_steps:
        steps = (matrix.outputs, 1)
        tensors += [
            Streamed(f"{names[1]}{STEPS_SUFFIX}", ir.DataType.INT8, scales, kept_blocks("scales")),
            Streamed(f"{names[1]}_steps", ir.DataType.FLOAT, steps, kept_blocks("steps")),
        ]
    else:
        tensors.append(Streamed(names[1], ir.DataType.FLOAT, scales, kept_blocks("scales")))
    if not width.symmetric:
        zeros = (matrix.outputs, -(-groups * width.bits // 8))
        blocks = kept_blocks("zeros")
        tensors.append(Streamed(f"{name}_zero_points", ir.DataType.UINT8, zeros, blocks))
    return tuple(tensors)


def return_freed_memory() -> None:
    """Have the C library give blocks above 4 MB back to the system as soon as they are freed.

    glibc raises that limit to 32 MB by itself, and the blocks made here then fragment its heap
    (measured at 8 bits: between 0.65 and 1.09 GB from run to run, with this always 0.65).
    """
    m_mmap_threshold = -3
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 4 << 20)
