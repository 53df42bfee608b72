"""What `scheme: auto` chooses from, and the smallest and the largest that can come of it. Predicted
from shapes; standard library only, for the plan reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgetune.checkpoint.folder import EMBEDDING, HEAD
from edgetune.optimize.size import predict_graph_bytes
from edgetune.optimize.widths import Width, Widths, parse_width

Shape = tuple[int, ...]

_GROUPS = (16, 32, 64, 128, 256)
OFFERED = (*(f"w4-g{size}" for size in _GROUPS), *(f"w8-g{size}" for size in _GROUPS), "fp32")
# Of all modules, what each costs alone is measured at this one, and it is the default of the rest.
MEASURED = "w4-g32"
HEAD_MODULE, EMBEDDING_MODULE = HEAD.removesuffix(".weight"), EMBEDDING.removesuffix(".weight")


def module_shapes(tensors: Mapping[str, Shape], tied: bool) -> dict[str, tuple[int, int]]:
    """{module: (outputs, inputs)} of all that a graph can quantize, by name, the head last.

    A tied embedding is the head's; one of its own stays in float32 unless it is chosen otherwise.
    """
    found = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in sorted(tensors.items())
        if len(shape) == 2 and name not in (EMBEDDING, HEAD)
    }
    head = tensors[EMBEDDING if tied and EMBEDDING in tensors else HEAD]
    if not tied:
        rows, width = tensors[EMBEDDING]
        found[EMBEDDING_MODULE] = (rows, width)
    return {**found, HEAD_MODULE: (head[0], head[1])}


def plain_width(module: str) -> str:
    """Its width where nothing is chosen and nothing protected."""
    return "fp32" if module == EMBEDDING_MODULE else MEASURED


def fixed_bytes(config: Mapping[str, Any], tensors: Mapping[str, Shape], tied: bool) -> int:
    """Of the graph, what no width changes: norms, tables, nodes."""
    default = Width(4, 32, "rtn")
    total, _ = predict_graph_bytes(config, tensors, tied, Widths(default))
    plain = {
        module: parse_width(plain_width(module), default).stored_bytes(*shape)[0]
        for module, shape in module_shapes(tensors, tied).items()
    }
    return total - sum(plain.values())


def smallest_graph_bytes(
    config: Mapping[str, Any], tensors: Mapping[str, Shape], tied: bool, protected: Widths
) -> int:
    """The graph with each module at its smallest width; `protected`: those with one of their own,
    by its rules."""
    total = fixed_bytes(config, tensors, tied)
    for module, shape in module_shapes(tensors, tied).items():
        own = protected.own(module)
        widths = [own] if own else [parse_width(words, protected.default) for words in OFFERED]
        total += min(width.stored_bytes(*shape)[0] for width in widths)
    return total


def own_widths(protected: Widths, modules: Iterable[str]) -> dict[str, str]:
    """{module: its width} of those with one of their own."""
    found = {module: protected.own(module) for module in modules}
    return {module: width.name for module, width in found.items() if width is not None}
