"""Each option that did not take effect is named, with what was wanted and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.errors import StepFailedError
from edgetune.optimize.forms.decoder import make_expectations
from edgetune.optimize.read_back import read_back
from edgetune.optimize.schemes import SCHEMES, make_widths

KEPT = {"embed_tokens": "fp32"}
EIGHT, FLOATS = make_widths(SCHEMES["w8a16-rtn"], None, KEPT), make_widths(SCHEMES["fp32"])
MODULES = ("middle", "head")
WANTED = make_expectations(SCHEMES["w8a16-rtn"], EIGHT, tied=False)
WANTED_FLOAT = make_expectations(SCHEMES["fp32"], FLOATS, tied=False)


def write_graph(
    folder: Path,
    *,
    bits: int = 8,
    group_size: int = 32,
    accuracy_level: int | None = 4,
    zero_points: bool = False,
    last_token: bool = True,
    index: int = -1,
    float_middle: bool = False,
    nf4_middle: int | None = None,
    embedding_bits: int | None = None,
    quantized_head: bool = True,
    location: str = "model.onnx.data",
    short_data: bool = False,
    scale_bits: int = 8,
) -> Path:
    """A graph with the parts of a decoder that the read-back looks at: embedding, one product,
    the choice of the last position, head."""
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    width, words = 64, 10
    data: list[TensorProto] = []

    def constant(name: str, kind: int, shape: list[int]) -> str:
        tensor = TensorProto(
            name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL
        )
        size = int(np.prod(shape)) * (1 if kind in (TensorProto.UINT8, TensorProto.INT8) else 4)
        begin = sum(int(t.external_data[2].value) for t in data)
        for key, value in (("location", location), ("offset", begin), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        data.append(tensor)
        return name

    def scales_of(weight: str, rows: int, groups: int) -> tuple[str, list[Any]]:
        name = f"{weight}_scales"
        if scale_bits != 8:
            return constant(name, TensorProto.FLOAT, [rows, groups]), []
        counts = constant(f"{name}_Q8", TensorProto.INT8, [rows, groups])
        steps = constant(f"{name}_steps", TensorProto.FLOAT, [rows, 1])
        cast = helper.make_node("Cast", [counts], [f"{name}_counts"], to=TensorProto.FLOAT)
        return name, [cast, helper.make_node("Mul", [f"{name}_counts", steps], [name])]

    def look_up() -> list[Any]:
        if embedding_bits is None:
            inputs = [constant("embedding", TensorProto.FLOAT, [words, width]), "input_ids"]
            return [helper.make_node("Gather", inputs, ["x"])]
        name = "model.embed_tokens.weight"
        groups = width // group_size
        packed = constant(f"{name}_Q", TensorProto.UINT8, [words, width * embedding_bits // 8])
        scales, multiplied = scales_of(name, words, groups)
        return [
            *multiplied,
            helper.make_node("Reshape", [packed, "flat"], ["rows"]),
            helper.make_node(
                "GatherBlockQuantized", ["rows", "input_ids", scales], ["x"],
                domain="com.microsoft", bits=embedding_bits, block_size=group_size,
            ),
        ]  # fmt: skip

    def nf4(name: str, x: str, y: str, kind: int) -> Any:
        packed = constant(f"{name}.MatMul.weight_Bnb4", TensorProto.UINT8, [width * width // 2])
        scales = constant(f"{name}.MatMul.weight_absmax", TensorProto.FLOAT, [width * width // 64])
        return helper.make_node(
            "MatMulBnb4", [x, packed, scales], [y], name, domain="com.microsoft",
            K=width, N=width, block_size=64, quant_type=kind,
        )  # fmt: skip

    def product(name: str, x: str, y: str, n: int, quantized: bool) -> Any:
        weight = f"{name}.MatMul.weight"
        if not quantized:
            inputs = [x, constant(weight, TensorProto.FLOAT, [width, n])]
            return helper.make_node("MatMul", inputs, [y], name)
        blocks = width // group_size or 1
        packed = [n, blocks, group_size * bits // 8]
        inputs = [x, constant(f"{weight}_Q{bits}", TensorProto.UINT8, packed)]
        scales, multiplied = scales_of(weight, n, blocks)
        inputs.append(scales)
        nodes.extend(multiplied)
        if zero_points:
            inputs.append(constant(f"{weight}_zero_points", TensorProto.UINT8, [n, blocks]))
        level = {} if accuracy_level is None else {"accuracy_level": accuracy_level}
        return helper.make_node(
            "MatMulNBits", inputs, [y], name, domain="com.microsoft",
            bits=bits, block_size=group_size, K=width, N=n, **level,
        )  # fmt: skip

    nodes = look_up()
    if nf4_middle is None:
        nodes.append(product("middle", "x", "h", width, not float_middle))
    else:
        nodes.append(nf4("middle", "x", "h", nf4_middle))
    last = "h"
    if last_token:
        nodes += [
            helper.make_node(
                "Constant", [], ["index"], value=numpy_helper.from_array(np.array(index))
            ),
            helper.make_node("Gather", ["h", "index"], ["g"], axis=1),
            helper.make_node("Unsqueeze", ["g", "one"], ["u"]),
        ]
        last = "u"
    nodes.append(product("head", last, "logits", words, quantized_head))
    count: int | str = 1 if last_token else "sequence"
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", count, words])],
        data,
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    size = sum(int(t.external_data[2].value) for t in data)
    (folder / "model.onnx.data").write_bytes(bytes(size - short_data))
    return folder


def test_a_cache_is_of_the_type_that_was_asked_for(tmp_path: Path) -> None:
    import onnx

    kind = onnx.TensorProto.INT8
    folder = write_graph(tmp_path)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    past = ("past_key_values.0.key", "past_key_values.0.value")
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, kind, [1, 2, "past", 16]) for name in past
    )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert read_back(folder, WANTED, EIGHT, MODULES)["kv_cache"] == "int8"
    small = make_expectations(SCHEMES["w8a16-rtn"], EIGHT, tied=False, kv_cache="int8")
    assert read_back(folder, small, EIGHT, MODULES)["kv_cache"] == "int8"
    with pytest.raises(StepFailedError, match="kv_cache is None, wanted int8"):
        read_back(write_graph(tmp_path / "plain"), small, EIGHT, MODULES)


def test_a_graph_as_asked_for(tmp_path: Path) -> None:
    assert read_back(write_graph(tmp_path), WANTED, EIGHT, MODULES) == {
        "weight_bits": 8,
        "group_size": 32,
        "accuracy_level": 4,
        "symmetric": True,
        "last_token_head": True,
        "kv_cache": None,
        "quantized_matmuls": 2,
        "nf4_matmuls": 0,
        "float_matmuls": 0,
        "embedding": "float32",
        "opset": 22,
    }


def test_a_float_graph_as_asked_for(tmp_path: Path) -> None:
    folder = write_graph(tmp_path, float_middle=True, quantized_head=False)
    found = read_back(folder, WANTED_FLOAT, FLOATS, MODULES)
    assert (found["quantized_matmuls"], found["float_matmuls"]) == (0, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 4}, "the width of middle is w4-g32 and scales in 8 bits, wanted w8-g32 and"),
        ({"group_size": 64}, "the width of middle is w8-g64 and scales in 8 bits, wanted w8-g32"),
        ({"scale_bits": 32}, "the width of middle is w8-g32, wanted w8-g32 and scales in 8 bits"),
        ({"accuracy_level": None}, "accuracy_level is 0, wanted 4"),
        ({"zero_points": True}, "is w8-g32 with zero points and scales in 8 bits, wanted w8-g32"),
        ({"last_token": False}, "last_token_head is False, wanted True"),
        ({"index": 0}, "last_token_head is False, wanted True"),
        ({"float_middle": True}, "the width of middle is fp32, wanted w8-g32"),
        ({"quantized_head": False}, "the width of head is fp32, wanted w8-g32"),
        ({"location": "../elsewhere"}, r"the data of embedding is ../elsewhere"),
        ({"short_data": True}, "the end of head.MatMul.weight_scales_steps is"),
    ],
)
def test_an_option_without_effect_is_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(StepFailedError, match=words) as raised:
        read_back(write_graph(tmp_path, **change), WANTED, EIGHT, MODULES)
    assert raised.value.exit_code == 6


def test_a_quantized_graph_is_no_float_one(tmp_path: Path) -> None:
    with pytest.raises(
        StepFailedError, match="the width of middle is w8-g32 and scales in 8 bits, wanted fp32"
    ):
        read_back(write_graph(tmp_path, accuracy_level=None), WANTED_FLOAT, FLOATS, MODULES)


def test_an_embedding_of_its_own_has_its_width(tmp_path: Path) -> None:
    widths = make_widths(SCHEMES["w8a16-rtn"], None, {"embed_tokens": "w4"})
    wanted = make_expectations(SCHEMES["w8a16-rtn"], widths, tied=False)
    folder = write_graph(tmp_path, embedding_bits=4)
    assert read_back(folder, wanted, widths, MODULES)["embedding"] == "int4"
    eight = make_widths(SCHEMES["w8a16-rtn"])
    with pytest.raises(
        StepFailedError,
        match="the width of the embedding is w4-g32 and scales in 8 bits, wanted w8",
    ):
        read_back(folder, wanted, eight, MODULES)
    with pytest.raises(
        StepFailedError,
        match="the width of the embedding is w4-g32 and scales in 8 bits, wanted fp32",
    ):
        read_back(folder, WANTED, EIGHT, MODULES)
    shared = make_expectations(SCHEMES["w8a16-rtn"], eight, tied=True)
    with pytest.raises(StepFailedError, match="is int4, wanted int8, shared with the head"):
        read_back(folder, shared, widths, MODULES)


def test_nf4_is_told_from_other_products(tmp_path: Path) -> None:
    widths = make_widths(SCHEMES["nf4a16"], None, KEPT)
    wanted = make_expectations(SCHEMES["nf4a16"], widths, tied=False)
    modules = ("middle", "lm_head")
    folder = write_graph(tmp_path, nf4_middle=1, quantized_head=False)
    with pytest.raises(StepFailedError, match="the width of head is fp32, wanted nf4-g64"):
        read_back(folder, wanted, widths, modules)
    floats = make_widths(SCHEMES["nf4a16"], None, {**KEPT, "head": "fp32"})
    found = read_back(folder, wanted, floats, modules)
    assert (found["nf4_matmuls"], found["quantized_matmuls"]) == (1, 1)
    assert (found["weight_bits"], found["group_size"], found["accuracy_level"]) == (4, 64, None)
    four = write_graph(tmp_path / "fp4", nf4_middle=0, quantized_head=False)
    with pytest.raises(StepFailedError, match="the width of middle is w4-g64, wanted nf4-g64"):
        read_back(four, wanted, floats, modules)


def test_products_that_differ_are_listed(tmp_path: Path) -> None:
    import onnx

    folder = write_graph(tmp_path)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    head = next(node for node in model.graph.node if node.name == "head")
    next(a for a in head.attribute if a.name == "bits").i = 4
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StepFailedError, match="the width of head is w4-g32 and scales in 8 bits"):
        read_back(folder, WANTED, EIGHT, MODULES)
