"""Reads the graph back and proves that each option took effect: some the builder ignores silently.

Only `model.onnx` is read, not its data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgetune.checkpoint.folder import EMBEDDING
from edgetune.checkpoint.graph_weights import places_of
from edgetune.errors import StepFailedError
from edgetune.optimize.widths import FLOAT, Widths

_ONNX_RUNTIME = "com.microsoft"
DATA = "model.onnx.data"
WEIGHT = ".MatMul.weight"
# Operators that may stand between the head's product and the logits.
_AFTER_HEAD = ("Add", "Cast", "Div", "Mul", "Tanh", "Where")


def read_back(
    folder: Path, wanted: Mapping[str, Any], widths: Widths, modules: Collection[str]
) -> dict[str, Any]:
    """What the graph in `folder` is, proved to be as wanted.

    `wanted` is `forms.decoder.make_expectations`, `modules` are the checkpoint's. Returns what was
    found of the same keys, and `weight_bits`, `group_size`, `symmetric`, `quantized_matmuls`,
    `float_matmuls` (products with a constant weight), `opset`. Raises StepFailedError naming
    option, wanted and found.
    """
    import onnx

    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    found = describe_graph(model.graph)
    found["opset"] = next(o.version for o in model.opset_import if not o.domain)
    check_products(model.graph, widths, modules)
    check_described(found, wanted)
    _check_data(model.graph, folder)
    return found


def check_described(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise StepFailedError for the first option that did not take effect."""
    for option, value in wanted.items():
        _require(found[option] == value, option, value, found[option])


def check_products(graph: Any, widths: Widths, modules: Collection[str]) -> None:
    """Raise StepFailedError for a product with a constant matrix that has not its module's width,
    and where there is no such product at all."""
    constants = {tensor.name for tensor in graph.initializer}
    seen = 0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "MatMulNBits") or node.input[1] not in constants:
            continue
        product = str(node.input[1]).partition(WEIGHT)[0]
        rows = [_attribute(node, "N", 0)]
        wanted = widths.of(places_of(product, rows, modules)[0][0])
        text, found = wanted.name, _width_of(node)
        if wanted.quantized:
            text = _shown(wanted.bits, wanted.group_size, symmetric=wanted.symmetric)
        _require(found == text, f"the width of {product}", text, found)
        seen += 1
    _require(seen > 0, "the number of products", "at least one", 0)


def _shown(bits: int, group_size: int | None, *, symmetric: bool) -> str:
    return f"w{bits}-g{group_size}{'' if symmetric else ' with zero points'}"


def _width_of(node: Any) -> str:
    if node.op_type != "MatMulNBits":
        return FLOAT.name
    symmetric = not (len(node.input) > 3 and node.input[3])
    return _shown(_attribute(node, "bits", 4), _attribute(node, "block_size"), symmetric=symmetric)


def _require(holds: bool, option: str, wanted: Any, found: Any) -> None:
    if not holds:
        msg = f"the graph is not what was asked for: {option} is {found}, wanted {wanted}"
        hint = "onnxruntime-genai's builder ignored an option; use the versions in constraints.txt"
        raise StepFailedError(msg, hint)


def describe_graph(graph: Any) -> dict[str, Any]:
    """Quantization, head and embedding of an onnx.GraphProto.

    A value on which the products differ is the sorted list of what occurs.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMulNBits" and n.domain == _ONNX_RUNTIME]
    floats = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constants]
    return {
        "weight_bits": _one(_attribute(n, "bits", 4) for n in products),
        "group_size": _one(_attribute(n, "block_size") for n in products),
        "accuracy_level": _one(_attribute(n, "accuracy_level", 0) for n in products),
        "symmetric": _one(not (len(n.input) > 3 and n.input[3]) for n in products),
        "last_token_head": _has_last_token_head(graph),
        "quantized_matmuls": len(products),
        "float_matmuls": len(floats),
        "embedding": _embedding(graph, constants),
    }


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    return next((a.i for a in node.attribute if a.name == name), default)


def _one(values: Iterator[Any]) -> Any:
    different = sorted(set(values))
    if len(different) > 1:
        return different
    return different[0] if different else None


def _has_last_token_head(graph: Any) -> bool:
    """True when the head multiplies the last position alone: Gather(-1), Unsqueeze, product."""
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get("logits")
    while node is not None and node.op_type in _AFTER_HEAD:
        node = next((producers[n] for n in node.input if n in producers), None)
    if node is None or node.op_type not in ("MatMul", "MatMulNBits"):
        return False
    unsqueeze = producers.get(node.input[0])
    if unsqueeze is None or unsqueeze.op_type != "Unsqueeze":
        return False
    gather = producers.get(unsqueeze.input[0])
    if gather is None or gather.op_type != "Gather" or _attribute(gather, "axis", 0) != 1:
        return False
    index = producers.get(gather.input[1])
    if index is None or _constant(index) != [-1]:
        return False
    logits = next(o for o in graph.output if o.name == "logits")
    shape: list[int] = [d.dim_value for d in logits.type.tensor_type.shape.dim]
    return shape[1] == 1


def _constant(node: Any) -> list[int] | None:
    from onnx import numpy_helper

    value = next((a.t for a in node.attribute if a.name == "value"), None)
    return None if value is None else numpy_helper.to_array(value).reshape(-1).tolist()


def _embedding(graph: Any, constants: Mapping[str, Any]) -> str:
    """How the token embedding is stored: `float32`, `int4`, …, with `, shared with the head`."""
    from onnx import TensorProto

    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if "input_ids" not in list(node.input):
            continue
        if node.op_type == "GatherBlockQuantized":
            source = producers[node.input[0]].input[0]
            shared = "" if source.startswith(EMBEDDING) else ", shared with the head"
            return f"int{_attribute(node, 'bits', 4)}{shared}"
        if node.op_type == "Gather" and node.input[0] in constants:
            name: str = TensorProto.DataType.Name(constants[node.input[0]].data_type)
            return {"FLOAT": "float32"}.get(name, name.lower())
        if node.op_type == "Gather" and producers[node.input[0]].op_type == "Transpose":
            return "float32, shared with the head"
    return "none"


def _check_data(graph: Any, folder: Path) -> None:
    """All weights lie in the one file beside the graph, inside its length."""
    size = (folder / DATA).stat().st_size
    for tensor in graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        name = where.get("location", DATA)
        _require(name == DATA, f"the data of {tensor.name}", DATA, name)
        end = int(where.get("offset", 0)) + int(where.get("length", 0))
        _require(end <= size, f"the end of {tensor.name}", f"at most {size}", end)
