"""Reads the graph back and proves that each option took effect: some the builder ignores silently.

Only `model.onnx` is read, not its data.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgetune.checkpoint.graph_scales import scales_in_steps
from edgetune.checkpoint.graph_weights import places_of
from edgetune.errors import StepFailedError
from edgetune.optimize.widths import NF4, Width, Widths

_ONNX_RUNTIME = "com.microsoft"
DATA = "model.onnx.data"
WEIGHT = ".MatMul.weight"
_QUANTIZED = ("MatMulNBits", "MatMulBnb4")
_PRODUCTS = ("MatMul", "Gemm", *_QUANTIZED)
# Operators that may stand between the head's product and the logits.
_AFTER_HEAD = ("Add", "Cast", "Div", "Mul", "Tanh", "Where")


def read_back(
    folder: Path, wanted: Mapping[str, Any], widths: Widths, modules: Collection[str]
) -> dict[str, Any]:
    """What the graph in `folder` is, proved to be as wanted.

    `wanted` is `forms.decoder.make_expectations`, `modules` are the checkpoint's. Returns what was
    found of the same keys, and `weight_bits`, `group_size`, `symmetric`, `quantized_matmuls`,
    `nf4_matmuls` of them, `float_matmuls` (products with a constant weight), `opset`. Raises
    StepFailedError naming option, wanted and found.
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
    only_nf4 = found["quantized_matmuls"] == found["nf4_matmuls"] > 0
    for option, value in wanted.items():
        if option == "accuracy_level" and only_nf4:
            continue  # their operator has none
        _require(found[option] == value, option, value, found[option])


def check_products(graph: Any, widths: Widths, modules: Collection[str]) -> None:
    """Raise StepFailedError for a product with a constant matrix, or an embedding of its own, that
    has not its module's width, and where there is no such product at all."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    in_steps = scales_in_steps(graph.node, constants)
    seen = 0
    for node in graph.node:
        if node.op_type not in _PRODUCTS or node.input[1] not in constants:
            continue
        product = str(node.input[1]).partition(WEIGHT)[0]
        rows = [_attribute(node, "N", 0)]
        wanted = widths.of(places_of(product, rows, modules)[0][0])
        found = _width_of(node, constants, in_steps)
        _require(found == _shown(wanted), f"the width of {product}", _shown(wanted), found)
        seen += 1
    _require(seen > 0, "the number of products", "at least one", 0)
    lookup = _lookup(graph)
    if lookup is not None and lookup.op_type == "GatherBlockQuantized":
        shared = _shares_head(graph, lookup)
        wanted = widths.of("lm_head") if shared else widths.of_embedding()
        text, found = _shown(wanted), _width_of(lookup, constants, in_steps)
        _require(found == text, "the width of the embedding", text, found)


def _shown(width: Width) -> str:
    zeros = "" if width.symmetric else " with zero points"
    return f"{width.name}{zeros}{' and scales in 8 bits' if width.scales_in_steps else ''}"


def _width_of(node: Any, constants: Mapping[str, Any], in_steps: Container[str]) -> str:
    group = _attribute(node, "block_size")
    if node.op_type == "MatMulBnb4":
        kind = _attribute(node, "quant_type")
        return _shown(Width(4, group, NF4 if kind == 1 else f"kind {kind}"))
    if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
        from onnx import TensorProto

        name: str = TensorProto.DataType.Name(constants[node.input[1]].data_type)
        return {"FLOAT": "fp32", "FLOAT16": "fp16"}.get(name, name.lower())
    symmetric = not (len(node.input) > 3 and node.input[3])
    scale_bits = 8 if node.input[2] in in_steps else 32
    return _shown(Width(_attribute(node, "bits", 4), group, "rtn", symmetric, scale_bits))


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
    quantized = [n for n in graph.node if n.op_type in _QUANTIZED and n.domain == _ONNX_RUNTIME]
    products = [n for n in quantized if n.op_type == "MatMulNBits"]
    floats = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constants]
    return {
        "weight_bits": _one(_attribute(n, "bits", 4) for n in quantized),
        "group_size": _one(_attribute(n, "block_size") for n in quantized),
        "accuracy_level": _one(_attribute(n, "accuracy_level", 0) for n in products),
        "symmetric": _one(not (len(n.input) > 3 and n.input[3]) for n in products),
        "last_token_head": _has_last_token_head(graph),
        "kv_cache": _kv_cache(graph),
        "quantized_matmuls": len(quantized),
        "nf4_matmuls": len(quantized) - len(products),
        "float_matmuls": len(floats),
        "embedding": _embedding(graph, constants),
    }


def _kv_cache(graph: Any) -> str | None:
    """The type of what attention is given of the text before; null where there is nothing."""
    from onnx import TensorProto

    kinds = {
        TensorProto.DataType.Name(i.type.tensor_type.elem_type)
        for i in graph.input
        if i.name.startswith("past_key_values.")
    }
    names = {"FLOAT": "float32", "INT8": "int8"}
    return "/".join(sorted(names.get(kind, kind.lower()) for kind in kinds)) or None


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
    if node is None or node.op_type not in _PRODUCTS:
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

    node = _lookup(graph)
    if node is None:
        return "none"
    if node.op_type == "GatherBlockQuantized":
        shared = ", shared with the head" if _shares_head(graph, node) else ""
        return f"int{_attribute(node, 'bits', 4)}{shared}"
    if node.input[0] in constants:
        name: str = TensorProto.DataType.Name(constants[node.input[0]].data_type)
        return {"FLOAT": "float32"}.get(name, name.lower())
    turned = {name for n in graph.node if n.op_type == "Transpose" for name in n.output}
    return "float32, shared with the head" if node.input[0] in turned else "none"


def _lookup(graph: Any) -> Any:
    """The node that looks tokens up in the embedding."""
    kinds = ("Gather", "GatherBlockQuantized")
    found = (n for n in graph.node if n.op_type in kinds and "input_ids" in list(n.input))
    return next(found, None)


def _shares_head(graph: Any, lookup: Any) -> bool:
    """Whether a quantized embedding is the head's own matrix, which it reads through a Reshape."""
    weights = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Reshape"}
    name = weights.get(lookup.input[0], lookup.input[0])
    return any(name == n.input[1] for n in graph.node if n.op_type == "MatMulNBits")


def _check_data(graph: Any, folder: Path) -> None:
    """All weights lie in the one file beside the graph, inside its length."""
    size = (folder / DATA).stat().st_size
    for tensor in graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        name = where.get("location", DATA)
        _require(name == DATA, f"the data of {tensor.name}", DATA, name)
        end = int(where.get("offset", 0)) + int(where.get("length", 0))
        _require(end <= size, f"the end of {tensor.name}", f"at most {size}", end)
