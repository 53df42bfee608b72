"""The quantized weights of a graph, read back as those of a checkpoint's modules.

onnxruntime-genai's builder joins attention's three projections into one product and splits a
joint gate and up projection into two; here each module gets its rows again. The graph's structure
is read whole, its data a block of rows at a time. A MatMulNBits stores codes of 4 or 8 bits, one
scale s and perhaps one zero point z for each group of a row: a weight is (code − z) · s, where z is
2^(bits−1) if none is stored, so |s| is the step. Scales may be stored in 8 bits (`graph_scales`). A
GatherBlockQuantized stores an embedding of its own likewise. A MatMulBnb4 stores NF4 codes: a
weight is the code's value times s.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune.checkpoint.graph_scales import scales_in_steps
from edgetune.checkpoint.nf4 import NF4_STEPS, nf4_codes, nf4_values
from edgetune.errors import StepFailedError

_NAME = ".MatMul.weight_"
_EMBEDDING = "model.embed_tokens"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
# 2 MB of float32: what is done with a block stays in the processor's cache.
_BLOCK_VALUES = 1 << 19


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True)
class GraphMatrix:
    """A quantized matrix [outputs, inputs] of the graph; `nf4`: its codes are NF4's."""

    outputs: int
    inputs: int
    bits: int
    group_size: int
    codes: Place
    scales: Place
    zero_points: Place | None = None
    # Of the rows, where `scales` says in int8 how many of them a scale is.
    steps: Place | None = None
    nf4: bool = False


@dataclass(frozen=True)
class Piece:
    """Rows start…stop of a matrix of the graph: a module, or a part of one."""

    matrix: GraphMatrix
    start: int
    stop: int


def read_matrices(folder: Path) -> dict[str, GraphMatrix]:
    """{the builder's name of a product, such as model.layers.0.attn.o_proj: its quantized matrix};
    empty for a float graph."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, GraphMatrix] = {}
    in_steps = scales_in_steps(graph.node, tensors)
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}
    for node in graph.node:
        number = {attribute.name: int(attribute.i) for attribute in node.attribute}
        if node.op_type == "GatherBlockQuantized":
            codes = sources.get(node.input[0], node.input[0])
            name, shape = codes.partition(".weight_")[0], tensors[codes].dims
            if name != _EMBEDDING:
                continue  # the head's, which is read there
            # A last short group is filled up: how long the rows are is not said here.
            number |= {"N": shape[0], "K": shape[1] * number["block_size"]}
            inputs = [codes, *node.input[2:]]
        elif node.op_type in ("MatMulNBits", "MatMulBnb4") and _NAME in node.input[1]:
            name, inputs = node.input[1].partition(_NAME)[0], list(node.input[1:])
        else:
            continue
        zeros = inputs[2] if len(inputs) > 2 else ""
        scales, steps = in_steps.get(inputs[1], (inputs[1], ""))
        found[name] = GraphMatrix(
            outputs=number["N"],
            inputs=number["K"],
            bits=number.get("bits", 4),
            group_size=number["block_size"],
            codes=_place(folder, tensors[inputs[0]]),
            scales=_place(folder, tensors[scales]),
            zero_points=_place(folder, tensors[zeros]) if zeros else None,
            steps=_place(folder, tensors[steps]) if steps else None,
            nf4=node.op_type == "MatMulBnb4",
        )
    return found


def places_of(
    product: str, rows: Sequence[int], modules: Container[str]
) -> tuple[tuple[str, int], ...]:
    """The module of each part of a product's matrix (of so many rows) and the part's first row in
    it; `product`: the builder's name, `modules`: the checkpoint's. The reverse of `pieces_of`."""
    name = product.replace(".attn.", ".self_attn.")
    parent, _, leaf = name.rpartition(".")
    if leaf == "qkv_proj" and name not in modules:
        return tuple((f"{parent}.{own}", 0) for own in _PROJECTIONS)
    if leaf in ("gate_proj", "up_proj") and f"{parent}.gate_up_proj" in modules:
        # Gate and up are halves of equal height.
        return ((f"{parent}.gate_up_proj", 0 if leaf == "gate_proj" else rows[0]),)
    starts = [sum(rows[:number]) for number in range(len(rows))]
    return tuple((name, start) for start in starts)


def pieces_of(
    module: str, shapes: Mapping[str, tuple[int, ...]], matrices: Mapping[str, GraphMatrix]
) -> list[Piece]:
    """The rows of the graph that hold a module's weight, in order; empty where it has none.

    `shapes`: {module: shape of its weight} of the whole checkpoint.
    """
    rows = shapes[module][0]
    name = module.replace(".self_attn.", ".attn.")
    if module == _EMBEDDING and "lm_head" not in shapes:
        name = "lm_head"  # tied: the head's matrix serves both
    elif module == _EMBEDDING and module in matrices:
        filled, size = matrices[module], matrices[module].group_size
        if filled.inputs == -(-shapes[module][1] // size) * size:
            matrices = {module: replace(filled, inputs=shapes[module][1])}
    parent, _, leaf = name.rpartition(".")
    pieces: list[Piece] = []
    if name in matrices:
        pieces = [Piece(matrices[name], 0, rows)]
    elif leaf in _PROJECTIONS and f"{parent}.qkv_proj" in matrices:
        own = module.rpartition(".")[0]
        before = _PROJECTIONS[: _PROJECTIONS.index(leaf)]
        start = sum(shapes[f"{own}.{other}"][0] for other in before)
        pieces = [Piece(matrices[f"{parent}.qkv_proj"], start, start + rows)]
    elif leaf == "gate_up_proj":
        halves = [matrices.get(f"{parent}.{half}") for half in ("gate_proj", "up_proj")]
        pieces = [Piece(half, 0, half.outputs) for half in halves if half is not None]
    whole = sum(piece.stop - piece.start for piece in pieces) == rows
    fits = all(p.stop <= p.matrix.outputs and p.matrix.inputs == shapes[module][1] for p in pieces)
    return pieces if whole and fits else []


def blocks_of(pieces: list[Piece]) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(first row in the module, weights [n, inputs], steps [n, inputs]) of blocks of rows, float32:
    what the graph computes with, and the distance of two neighbouring values there."""
    row = 0
    for piece in pieces:
        height = max(1, _BLOCK_VALUES // piece.matrix.inputs)
        for start in range(piece.start, piece.stop, height):
            stop = min(start + height, piece.stop)
            yield row, *_rows(piece.matrix, start, stop)
            row += stop - start


def whole_weight(pieces: list[Piece]) -> torch.Tensor:
    """A module's weight as the graph computes with it, float32 [outputs, inputs]."""
    return torch.cat([weights for _, weights, _ in blocks_of(pieces)])


def _rows(matrix: GraphMatrix, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    groups = -(-matrix.inputs // matrix.group_size)
    width = groups * (matrix.group_size * matrix.bits // 8)
    packed = _read(matrix.codes, np.uint8, start * width, (stop - start) * width)
    shape = (stop - start, groups)
    scales = _scales(matrix, start, stop, groups)
    if matrix.nf4:
        groups_packed = packed.reshape(*shape, -1)
        values = torch.from_numpy(nf4_values(groups_packed, scales))
        steps = NF4_STEPS[nf4_codes(groups_packed)] * scales[:, :, None]
        return values.flatten(1), torch.from_numpy(steps).flatten(1)
    zeros = None
    if matrix.zero_points is not None:
        row = -(-groups * matrix.bits // 8)
        zeros = _read(matrix.zero_points, np.uint8, start * row, (stop - start) * row)
    values = values_of(packed, scales, zeros, matrix.bits)
    steps = torch.from_numpy(scales)[:, :, None].abs().expand_as(values)
    # A last short group is filled up.
    return values.flatten(1)[:, : matrix.inputs], steps.flatten(1)[:, : matrix.inputs]


def _scales(matrix: GraphMatrix, start: int, stop: int, groups: int) -> np.ndarray[Any, Any]:
    """float32 [rows, groups]"""
    dtype = np.float32 if matrix.steps is None else np.int8
    found = _read(matrix.scales, dtype, start * groups, (stop - start) * groups)
    scales: np.ndarray[Any, Any] = found.reshape(stop - start, groups).astype(np.float32)
    if matrix.steps is not None:
        scales *= _read(matrix.steps, np.float32, start, stop - start)[:, None]
    return scales


def values_of(
    packed: np.ndarray[Any, Any],
    scales: np.ndarray[Any, Any],
    zero_points: np.ndarray[Any, Any] | None,
    bits: int,
) -> torch.Tensor:
    """What a MatMulNBits computes with, float32 [rows, groups, group size]: (code − z) · s.

    packed: uint8, rows × groups × bytes a group values in this order; scales: [rows, groups];
    zero_points: uint8, rows × bytes a row values, or null (the middle code).
    """
    rows, groups = scales.shape
    codes = torch.from_numpy(_unpacked(packed, bits).reshape(rows, groups, -1)).float()
    zeros: torch.Tensor | int = 2 ** (bits - 1)
    if zero_points is not None:
        points = _unpacked(zero_points, bits).reshape(rows, -1)[:, :groups, None]
        zeros = torch.from_numpy(points.astype(np.float32))
    return codes.sub_(zeros).mul_(torch.from_numpy(scales)[:, :, None])


def _unpacked(packed: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    if bits != 4:
        return packed
    # The lower half of a byte is the earlier value.
    both = np.empty((packed.size, 2), dtype=np.uint8)
    np.bitwise_and(packed.reshape(-1), 15, out=both[:, 0])
    np.right_shift(packed.reshape(-1), 4, out=both[:, 1])
    return both


def _read(place: Place, dtype: Any, first: int, count: int) -> np.ndarray[Any, Any]:
    size = np.dtype(dtype).itemsize
    if (first + count) * size > place.length:
        msg = f"{place.file}: a quantized weight is shorter than its shape"
        raise StepFailedError(msg, "build the graph again")
    found = np.fromfile(place.file, dtype=dtype, count=count, offset=place.offset + first * size)
    if len(found) != count:
        msg = f"{place.file}: truncated"
        raise StepFailedError(msg, "build the graph again")
    return found


def _place(folder: Path, tensor: Any) -> Place:
    where = {entry.key: entry.value for entry in tensor.external_data}
    if "location" not in where:
        msg = f"{folder}: {tensor.name} is not stored beside the graph"
        raise StepFailedError(msg, "this is an error in edgetune; please report it")
    nbytes = math.prod(tensor.dims) * (4 if tensor.data_type == 1 else 1)
    file = folder / where["location"]
    return Place(file, int(where.get("offset", 0)), int(where.get("length", nbytes)))
