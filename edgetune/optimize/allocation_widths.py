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
# Of all modules, what each costs alone is measured at this one.
MEASURED = "w4-g32"
HEAD_MODULE = HEAD.removesuffix(".weight")


def module_shapes(tensors: Mapping[str, Shape], tied: bool) -> dict[str, tuple[int, int]]:
    """{module: (outputs, inputs)} of all that a graph can quantize, by name, the head last.

    A tied embedding is the head's; one of its own stays in float32 and is left out.
    """
    found = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in sorted(tensors.items())
        if len(shape) == 2 and name not in (EMBEDDING, HEAD)
    }
    head = tensors[EMBEDDING if tied and EMBEDDING in tensors else HEAD]
    return {**found, HEAD_MODULE: (head[0], head[1])}


def fixed_bytes(config: Mapping[str, Any], tensors: Mapping[str, Shape], tied: bool) -> int:
    """Of the graph, what no width changes: norms, tables, nodes, an embedding of its own."""
    default = Width(4, 32, "rtn")
    total, _ = predict_graph_bytes(config, tensors, tied, Widths(default))
    modules = module_shapes(tensors, tied).values()
    return total - sum(default.stored_bytes(*shape)[0] for shape in modules)


def smallest_graph_bytes(
    config: Mapping[str, Any], tensors: Mapping[str, Shape], tied: bool, protected: Widths
) -> int:
    """The graph with each module at its smallest width; `protected`: those with one of their own,
    by its rules."""
    total = fixed_bytes(config, tensors, tied)
    for module, shape in module_shapes(tensors, tied).items():
        own = own_width(protected, module)
        widths = [own] if own else [parse_width(words, protected.default) for words in OFFERED]
        total += min(width.stored_bytes(*shape)[0] for width in widths)
    return total


def own_width(protected: Widths, module: str) -> Width | None:
    """The width that a rule gives a module; null where none fits."""
    return next((w for words, w in protected.rules if _fits(words, module)), None)


def own_widths(protected: Widths, modules: Iterable[str]) -> dict[str, str]:
    """{module: its width} of those with one of their own."""
    found = {module: own_width(protected, module) for module in modules}
    return {module: width.name for module, width in found.items() if width is not None}


def _fits(words: str, module: str) -> bool:
    return module == words or module.endswith(f".{words}")
