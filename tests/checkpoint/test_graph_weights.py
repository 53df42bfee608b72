"""The graph's weights, read back: those that ONNX Runtime computes with, each at its module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from edgetune.checkpoint import graph_weights
from edgetune.checkpoint.graph_weights import (
    GraphMatrix,
    Place,
    blocks_of,
    pieces_of,
    read_matrices,
    whole_weight,
)
from edgetune.checkpoint.nf4 import NF4_CODES
from edgetune.errors import StepFailedError
from edgetune.optimize.rounding import ROUNDERS
from edgetune.optimize.rounding.block import Block
from edgetune.optimize.rounding.scales import counts_of
from edgetune.optimize.widths import NF4, Width
from tests.tiny_package import VARIANT, tiny_package


def shapes_of(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {n.removesuffix(".weight"): tuple(t.shape) for n, t in weights.items()}


def matrix(outputs: int = 4, inputs: int = 32) -> GraphMatrix:
    place = Place(Path("x"), 0, 0)
    return GraphMatrix(outputs, inputs, 8, 32, place, place)


def product(folder: Path, weight: torch.Tensor, width: Width) -> None:
    """A graph of one MatMulNBits, or MatMulBnb4, its data beside it."""
    name = "model.layers.0.mlp.down_proj.MatMul.weight"
    tensors, before = tensors_of(name, weight, width)
    attributes = {"bits": width.bits}
    if width.algorithm == NF4:
        attributes = {"quant_type": 1}
        for tensor in tensors:
            tensor.dims[:] = [int(np.prod(tensor.dims))]
    node = helper.make_node(
        "MatMulBnb4" if width.algorithm == NF4 else "MatMulNBits",
        ["x", *inputs_of(tensors)], ["y"], domain="com.microsoft",
        K=weight.shape[1], N=weight.shape[0], block_size=width.group_size, **attributes,
    )  # fmt: skip
    given = ("x", TensorProto.FLOAT, [None, weight.shape[1]])
    save(folder, node, given, tensors, weight.shape[0], *before)


def tensors_of(
    name: str, weight: torch.Tensor, width: Width
) -> tuple[list[TensorProto], list[Any]]:
    """A matrix's constants, and the nodes that multiply its scales out."""
    found = ROUNDERS[str(width.algorithm)](Block("w", 0, weight), width)
    scales = {f"{name}_scales": found.scales}
    nodes = []
    if found.steps is not None:
        counts, steps = f"{name}_scales_Q8", f"{name}_scales_steps"
        scales = {counts: counts_of(found.scales, found.steps), steps: found.steps}
        nodes = [
            helper.make_node("Cast", [counts], ["counts"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["counts", steps], [f"{name}_scales"]),
        ]
    arrays = {f"{name}_Q{width.bits}": found.packed, **scales}
    if found.zero_points is not None:
        arrays[f"{name}_zero_points"] = found.zero_points
    return [numpy_helper.from_array(value, key) for key, value in arrays.items()], nodes


def inputs_of(tensors: list[TensorProto]) -> list[str]:
    """Of a product or lookup, beside what it is given."""
    names = [tensor.name for tensor in tensors if not tensor.name.endswith("_steps")]
    return [name.removesuffix("_Q8") if name.endswith("_scales_Q8") else name for name in names]


def save(
    folder: Path,
    node: Any,
    given: tuple[str, int, list[int | None]],
    tensors: list[TensorProto],
    columns: int | None,
    *before: Any,
) -> None:
    graph = helper.make_graph(
        [*before, node], "g",
        [helper.make_tensor_value_info(*given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, columns])],
        tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data",
        size_threshold=0,
    )  # fmt: skip


# Of groups a row one is an odd number, one has a last short group.
@pytest.mark.parametrize("scale_bits", [32, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("algorithm", ["rtn", "kquant", "hqq"])
@pytest.mark.parametrize(
    ("bits", "group", "inputs"), [(4, 32, 64), (8, 32, 64), (4, 16, 40), (4, 64, 192), (8, 64, 192)]
)
def test_they_are_what_onnxruntime_computes_with(
    tmp_path: Path,
    algorithm: str,
    bits: int,
    group: int,
    inputs: int,
    symmetric: bool,
    scale_bits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime as ort

    if symmetric and algorithm != "rtn":
        return  # these have zero points
    monkeypatch.setattr(graph_weights, "_BLOCK_VALUES", 3 * inputs)
    weight = torch.randn(8, inputs, generator=torch.Generator().manual_seed(0))
    product(tmp_path, weight, Width(bits, group, algorithm, symmetric, scale_bits))
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (columns,) = session.run(None, {"x": np.eye(inputs, dtype=np.float32)})
    (name, found), *_ = read_matrices(tmp_path).items()
    assert name == "model.layers.0.mlp.down_proj"
    pieces = pieces_of(name, {name: (8, inputs)}, {name: found})
    read = whole_weight(pieces)
    assert read.numpy() == pytest.approx(columns.T, abs=1e-6)
    steps = torch.cat([step for _, _, step in blocks_of(pieces)])
    assert [row for row, _, _ in blocks_of(pieces)] == [0, 3, 6]
    # to nearest, but for the largest of a group, which may be cut by a step
    off = (read - weight).abs() / steps
    assert float(off.max()) <= (1.001 if algorithm == "rtn" else 2)
    assert float((off <= 0.501).float().mean()) > 0.9


def test_nf4_is_what_onnxruntime_computes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime as ort

    monkeypatch.setattr(graph_weights, "_BLOCK_VALUES", 3 * 192)
    codes = np.random.default_rng(0).integers(0, 16, (8, 3, 64))
    codes[:, :, 0] = 15
    weight = torch.from_numpy(NF4_CODES[codes].reshape(8, 192) * np.float32(0.3))
    product(tmp_path, weight, Width(4, 64, NF4))
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (columns,) = session.run(None, {"x": np.eye(192, dtype=np.float32)})
    (name, found), *_ = read_matrices(tmp_path).items()
    assert (name, found.nf4) == ("model.layers.0.mlp.down_proj", True)
    pieces = pieces_of(name, {name: (8, 192)}, {name: found})
    assert np.array_equal(whole_weight(pieces).numpy(), columns.T)
    assert torch.equal(whole_weight(pieces), weight)
    steps = torch.cat([step for _, _, step in blocks_of(pieces)])
    assert float(steps.max()) <= 0.3 * 0.31
    assert float(steps.min()) >= 0.3 * 0.07


@pytest.mark.parametrize("scale_bits", [32, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group", "inputs"), [(8, 32, 40), (4, 64, 192), (8, 16, 48)])
def test_an_embedding_of_its_own(
    tmp_path: Path, bits: int, group: int, inputs: int, symmetric: bool, scale_bits: int
) -> None:
    import onnxruntime as ort

    weight = torch.randn(8, inputs, generator=torch.Generator().manual_seed(0))
    width = Width(bits, group, "rtn", symmetric, scale_bits)
    tensors, before = tensors_of("model.embed_tokens.weight", weight, width)
    packed = tensors[0]
    shape = numpy_helper.from_array(np.array([8, -1], dtype=np.int64))
    flat = helper.make_node("Constant", [], ["flat"], value=shape)
    reshape = helper.make_node("Reshape", [packed.name, "flat"], ["rows"])
    node = helper.make_node(
        "GatherBlockQuantized", ["rows", "x", *inputs_of(tensors)[1:]], ["y"],
        domain="com.microsoft", bits=bits, block_size=group, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    given = ("x", TensorProto.INT64, [None])
    save(tmp_path, node, given, tensors, None, flat, reshape, *before)
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"x": np.arange(8)})
    shapes = {"model.embed_tokens": (8, inputs), "lm_head": (8, inputs)}
    pieces = pieces_of("model.embed_tokens", shapes, read_matrices(tmp_path))
    assert whole_weight(pieces).numpy() == pytest.approx(rows[:, :inputs], abs=1e-6)


def test_every_module_of_a_real_graph_is_found(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    package = tiny_package(tmp_path_factory)
    weights = load_file(package.parent / "checkpoint" / "model.safetensors")
    shapes, matrices = shapes_of(weights), read_matrices(package / VARIANT)
    assert any(name.endswith("qkv_proj") for name in matrices)  # joined by the builder
    linears = [n for n, shape in shapes.items() if len(shape) == 2 and "embed" not in n]
    assert len(linears) == 15
    for module in linears:
        pieces = pieces_of(module, shapes, matrices)
        exact, read = weights[f"{module}.weight"].float(), whole_weight(pieces)
        steps = torch.cat([step for _, _, step in blocks_of(pieces)])
        assert bool(((read - exact).abs() <= 1.01 * steps).all()), module
    assert pieces_of("model.embed_tokens", shapes, matrices) == []


def test_joined_and_split_products_are_told_apart() -> None:
    layer = "model.layers.0"
    matrices = {
        f"{layer}.attn.qkv_proj": matrix(12), f"{layer}.mlp.gate_proj": matrix(8),
        f"{layer}.mlp.up_proj": matrix(8),
    }  # fmt: skip
    shapes = {
        f"{layer}.self_attn.q_proj": (8, 32), f"{layer}.self_attn.k_proj": (2, 32),
        f"{layer}.self_attn.v_proj": (2, 32), f"{layer}.mlp.gate_up_proj": (16, 32),
        f"{layer}.mlp.down_proj": (8, 32),
    }  # fmt: skip

    def rows(module: str) -> list[tuple[int, int]]:
        return [(p.start, p.stop) for p in pieces_of(f"{layer}.{module}", shapes, matrices)]

    assert rows("self_attn.q_proj") == [(0, 8)]
    assert rows("self_attn.k_proj") == [(8, 10)]
    assert rows("self_attn.v_proj") == [(10, 12)]
    assert rows("mlp.gate_up_proj") == [(0, 8), (0, 8)]
    assert rows("mlp.down_proj") == []


def test_a_matrix_of_another_shape_is_none_of_the_module() -> None:
    shapes = {"lm_head": (5, 32), "model.embed_tokens": (4, 32)}
    assert pieces_of("lm_head", shapes, {"lm_head": matrix(4)}) == []
    assert pieces_of("lm_head", {"lm_head": (4, 64)}, {"lm_head": matrix(4)}) == []
    # a tied embedding is the head's matrix
    tied = {"model.embed_tokens": (4, 32)}
    assert len(pieces_of("model.embed_tokens", tied, {"lm_head": matrix(4)})) == 1


def test_a_shortened_file_is_told(tmp_path: Path) -> None:
    product(tmp_path, torch.randn(8, 32), Width(8, 32, "rtn"))
    (name, found), *_ = read_matrices(tmp_path).items()
    (tmp_path / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(StepFailedError, match="truncated"):
        whole_weight(pieces_of(name, {name: (8, 32)}, {name: found}))
