"""A graph's bytes by module, against what lies in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.package.weights import describe_weights

onnx = pytest.importorskip("onnx")


def write(folder: Path, nodes: list[Any], tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A graph whose constants lie outside, as the builder writes them."""
    from onnx import helper, numpy_helper

    made = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", [], [], initializer=made)
    onnx.save(
        helper.make_model(graph), str(folder / "model.onnx"), save_as_external_data=True,
        location="model.onnx.data", size_threshold=0,
    )  # fmt: skip
    return folder


def product(name: str, bits: int, outputs: int, inputs: int, zero_points: bool = False) -> Any:
    names = ["x", f"{name}.MatMul.weight_Q{bits}", f"{name}.MatMul.weight_scales"]
    names += [f"{name}.MatMul.weight_zp"] if zero_points else []
    return onnx.helper.make_node(
        "MatMulNBits", names, ["y"], domain="com.microsoft", bits=bits, block_size=32,
        N=outputs, K=inputs,
    )  # fmt: skip


def constants(
    name: str, bits: int, outputs: int, inputs: int, zero_points: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    groups = -(-inputs // 32)
    found: dict[str, np.ndarray[Any, Any]] = {
        f"{name}.MatMul.weight_Q{bits}": np.zeros((outputs, groups, 32 * bits // 8), np.uint8),
        f"{name}.MatMul.weight_scales": np.zeros(outputs * groups, np.float32),
    }
    if zero_points:
        found[f"{name}.MatMul.weight_zp"] = np.zeros(outputs * groups, np.uint8)
    return found


def test_every_byte_has_its_place(tmp_path: Path) -> None:
    four, eight = ("model.layers.0.attn.o_proj", 4, 64, 64), ("lm_head", 8, 96, 64)
    tensors = {
        **constants(*four, zero_points=True),
        **constants(*eight),
        "model.embed_tokens.weight": np.zeros((96, 64), np.float32),
        "model.layers.0.lora.weight": np.zeros((64, 8), np.float16),
        "model.norm.weight": np.zeros(64, np.float32),
        "cos_cache": np.zeros((128, 32), np.float32),
    }
    nodes = [
        onnx.helper.make_node("Gather", ["model.embed_tokens.weight", "input_ids"], ["x"]),
        product(*four, zero_points=True),
        product(*eight),
        onnx.helper.make_node("MatMul", ["x", "model.layers.0.lora.weight"], ["z"]),
        onnx.helper.make_node("Mul", ["x", "model.norm.weight"], ["w"]),
    ]
    found = describe_weights(write(tmp_path, nodes, tensors))
    rows = {row["name"]: row for row in found["modules"]}
    assert {name: (row["bits"], row["group_size"]) for name, row in rows.items()} == {
        "model.layers.0.attn.o_proj": (4, 32),
        "lm_head": (8, 32),
        "model.embed_tokens": (32, None),
        "model.layers.0.lora": (16, None),
    }
    assert rows["lm_head"]["values"] == 96 * 64
    assert rows["lm_head"]["bytes"] == 96 * 64 + 96 * 2 * 4
    assert rows["model.layers.0.attn.o_proj"]["bytes"] == 64 * 64 // 2 + 64 * 2 * 5
    assert found["other_bytes"] == 64 * 4 + 128 * 32 * 4
    total = sum(row["bytes"] for row in found["modules"]) + found["other_bytes"]
    assert total == sum(value.nbytes for value in tensors.values())
    assert total <= (tmp_path / "model.onnx.data").stat().st_size


def test_scales_in_8_bits_are_the_modules(tmp_path: Path) -> None:
    head = ("lm_head", 8, 96, 64)
    scales = "lm_head.MatMul.weight_scales"
    tensors = {
        **{name: value for name, value in constants(*head).items() if name != scales},
        f"{scales}_Q8": np.zeros((96, 2), np.int8),
        f"{scales}_steps": np.zeros((96, 1), np.float32),
    }
    nodes = [
        onnx.helper.make_node("Cast", [f"{scales}_Q8"], ["counts"], to=1),
        onnx.helper.make_node("Mul", ["counts", f"{scales}_steps"], [scales]),
        product(*head),
    ]
    found = describe_weights(write(tmp_path, nodes, tensors))
    (row,) = found["modules"]
    assert (row["name"], row["bytes"]) == ("lm_head", 96 * 64 + 96 * 2 + 96 * 4)
    assert found["other_bytes"] == 0


def test_a_matrix_that_serves_twice_counts_once(tmp_path: Path) -> None:
    head = ("lm_head", 8, 96, 64)
    lookup = onnx.helper.make_node(
        "GatherBlockQuantized",
        ["lm_head.MatMul.weight_Q8", "input_ids", "lm_head.MatMul.weight_scales"],
        ["x"], domain="com.microsoft", bits=8, block_size=32,
    )  # fmt: skip
    alone = describe_weights(write(tmp_path, [product(*head)], constants(*head)))
    both = describe_weights(write(tmp_path, [lookup, product(*head)], constants(*head)))
    assert both == alone
    assert [row["name"] for row in both["modules"]] == ["lm_head"]
    assert both["modules"][0]["values"] == 96 * 64
