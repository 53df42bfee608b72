"""What a graph's bytes are: each matrix with its bits, and the rest. Read from what ships.

Only `model.onnx` is read, not its data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetune.checkpoint.graph_scales import scales_in_steps

# Operators with a quantized constant matrix: which inputs belong to it, and its size in attributes.
_QUANTIZED = ("MatMulNBits", "MatMulBnb4")
_SHARED = "GatherBlockQuantized"
# What builder and quantizers append to the name of a module.
_ENDINGS = re.compile(r"(\.MatMul)?\.weight.*$|[._](Q\d|bias|scales|zero_points).*$|^/|/MatMul$")


def describe_weights(folder: Path) -> dict[str, Any]:
    """{"modules": [{name, bits, group_size, values, bytes}], "other_bytes"} of a flat genai folder.

    A module is a constant matrix of the graph, in the graph's order; its bytes hold codes, scales
    and zero points, and `bits` is what one weight's code takes. A matrix that serves twice counts
    once. `other_bytes`: all other constants (norms, biases, tables
    of positions).
    """
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    left = {tensor.name: tensor for tensor in graph.initializer}
    modules = []
    for row, names in _quantized(graph.node, left):
        row["bytes"] = sum(_bytes(left.pop(name)) for name in names)
        modules.append(row)
    products = {n.input[i] for n in graph.node for i in _matrix_inputs(n)}
    for name in [name for name in left if name in products and len(left[name].dims) == 2]:
        tensor = left.pop(name)
        values, count = math.prod(tensor.dims), _bytes(tensor)
        modules.append(
            {"name": _module(name), "bits": 8 * count // max(values, 1), "group_size": None,
             "values": values, "bytes": count}
        )  # fmt: skip
    return {"modules": modules, "other_bytes": sum(map(_bytes, left.values()))}


def _quantized(nodes: Any, known: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """(row without bytes, its initializers) of each quantized matrix, once."""
    seen: set[str] = set()
    in_steps = scales_in_steps(nodes, known)
    # The product says more than the lookup that shares its matrix.
    for node in sorted(nodes, key=lambda n: n.op_type == _SHARED):
        if node.op_type not in (*_QUANTIZED, _SHARED):
            continue
        number = {a.name: int(a.i) for a in node.attribute}
        first = 0 if node.op_type == _SHARED else 1
        inputs = (name for given in node.input for name in in_steps.get(given, (given,)))
        names = [name for name in inputs if name in known and name not in seen]
        codes = node.input[first]
        if codes not in names:
            continue
        seen.update(names)
        bits = number.get("bits", 4)
        dims = known[codes].dims
        values = number["N"] * number["K"] if "K" in number else math.prod(dims)
        row = {"name": _module(codes), "bits": bits, "group_size": number.get("block_size"),
               "values": values}  # fmt: skip
        yield row, names


def _matrix_inputs(node: Any) -> tuple[int, ...]:
    """Which inputs of an operator are a weight that belongs to a module."""
    if node.op_type in ("MatMul", "Gemm"):
        return (0, 1)
    return (0,) if node.op_type in ("Gather", "Transpose") else ()


def _module(name: str) -> str:
    return _ENDINGS.sub("", name) or name


def _bytes(tensor: Any) -> int:
    """What a tensor takes in the file that holds it."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    if "length" in where:
        return int(where["length"])
    return len(tensor.raw_data) or int(tensor.ByteSize())
