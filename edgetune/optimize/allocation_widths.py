"""What `scheme: auto` chooses from, and the smallest and the largest that can come of it. Predicted
from shapes; standard library only, for the plan reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgetune.checkpoint.folder import EMBEDDING, HEAD
from edgetune.optimize.size import predict_graph_bytes
from edgetune.optimize.widths import Width, Widths, parse_width

Shape = tuple[int, ...]

GROUPS = (16, 32, 64, 128, 256)
# Four bits in groups of 16 take as long to multiply as 8 bits do, in half the bytes: a choice by
# bytes would slow the package down unseen (tools/bench_widths.py; docs/performance.md).
_FOUR_BIT_GROUPS = GROUPS[1:]
OFFERED = (
    *(f"w4-g{size}" for size in _FOUR_BIT_GROUPS),
    *(f"w8-g{size}" for size in GROUPS),
    "fp32",
)
# Of all modules, what each costs alone is measured at this one, and it is the default of the rest.
MEASURED = "w4-g32"
# And where that says little.
MEASURED_8 = "w8-g32"
HEAD_MODULE, EMBEDDING_MODULE = HEAD.removesuffix(".weight"), EMBEDDING.removesuffix(".weight")


def module_shapes(tensors: Mapping[str, Shape], tied: bool) -> dict[str, tuple[int, int]]:
    """{module: (outputs, inputs)} of all that a graph can quantize, by name, the head last.

    A tied embedding is the head's.
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


def offered(module: str) -> tuple[str, ...]:
    """The widths that a module has to choose from.

    An embedding of its own has 8 bits or more: a row that the calibration text does not look up
    costs nothing there, and may cost an answer elsewhere.
    """
    if module == EMBEDDING_MODULE:
        return tuple(words for words in OFFERED if not words.startswith("w4"))
    return OFFERED


def in_layers(module: str) -> bool:
    """Whether a module stands in a decoder layer: it is neither the head nor the embedding."""
    return module not in (HEAD_MODULE, EMBEDDING_MODULE)


def beside_others(module: str, kl: float, share: float) -> float:
    """What a module costs beside others: `share` of what it costs alone, if it is in a layer."""
    return kl * share if in_layers(module) else kl


def plain_width(module: str) -> str:
    """Its width in `w4a16-rtn`: where nothing is chosen and nothing protected."""
    return MEASURED_8 if module == EMBEDDING_MODULE else MEASURED


def chosen_rules(chosen: Mapping[str, str]) -> dict[str, str]:
    """Of chosen widths {module: width} those that a rule must give: all but the default."""
    return {module: words for module, words in chosen.items() if words != MEASURED}


def fixed_bytes(config: Mapping[str, Any], tensors: Mapping[str, Shape], tied: bool) -> int:
    """Of the graph, what no width changes: norms, tables, nodes."""
    default = Width(4, 32, "rtn", scale_bits=8)
    embedding = (EMBEDDING_MODULE, parse_width(plain_width(EMBEDDING_MODULE), default))
    total = predict_graph_bytes(config, tensors, tied, Widths(default, (embedding,))).total
    plain = {
        module: parse_width(plain_width(module), default).stored(*shape).total
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
        widths = (
            [own] if own else [parse_width(words, protected.default) for words in offered(module)]
        )
        total += min(width.stored(*shape).total for width in widths)
    return total


def own_widths(protected: Widths, modules: Iterable[str]) -> dict[str, str]:
    """{module: its width} of those with one of their own."""
    found = {module: protected.own(module) for module in modules}
    return {module: width.name for module, width in found.items() if width is not None}
