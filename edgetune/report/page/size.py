"""What the bytes of the package are: by kind of module and bits."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgetune.report.page.elements import Markup, fold, foreign, join, table, tag
from edgetune.report.page.plots import stacked_bar
from edgetune.report.page.shown import Shown
from edgetune.report.schema import GraphModule, Report
from edgetune.report.words import megabytes, percent

_NUMBER = re.compile(r"\.\d{1,4}(?=\.|$)")


def sizes(shown: Shown, level: str) -> Markup:
    """Base, package, graph; the graph's bytes by module and bits."""
    report = shown.report
    return tag("section", tag(level, "Size"), *_parts(report, shown.title))


def _parts(report: Report, title: str) -> Iterator[Markup]:
    size = report.size
    base = f"The base’s weights take {megabytes(size.base_bytes)} MB, " if size.base_bytes else ""
    yield tag(
        "p",
        f"{base}{'the' if base else 'The'} package {megabytes(size.package_bytes)} MB, of it the "
        f"graph and its weights {megabytes(size.graph_bytes)} MB.",
    )
    weights = report.weights
    if weights is None:
        yield tag("p", "By module and bits: not measured (the package was built without it).")
        return
    # Of an edited report the parts may be more than the whole.
    structure = max(
        0, size.graph_bytes - sum(m.bytes for m in weights.modules) - weights.other_bytes
    )
    by_bits: dict[int, int] = {}
    for module in weights.modules:
        by_bits[module.bits] = by_bits.get(module.bits, 0) + module.bytes
    parts = [
        *((f"{bits} bits", count) for bits, count in sorted(by_bits.items())),
        ("vectors and tables", weights.other_bytes),
        ("structure", structure),
    ]
    parts = [(name, count) for name, count in parts if count]
    words = "; ".join(f"{name} {megabytes(count)} MB" for name, count in parts)
    bar = stacked_bar(
        "The graph’s bytes by bits",
        f"{words}.",
        [(name, float(count), f"part-{number % 6}") for number, (name, count) in enumerate(parts)],
    )
    total = sum(count for _, count in parts) or 1
    legend = [
        tag("li", tag("span", "", class_=f"swatch part-{number % 6}", aria_hidden="true"),
            f"{name}: {megabytes(count)} MB, {percent(count / total)}")
        for number, (name, count) in enumerate(parts)
    ]  # fmt: skip
    yield tag("figure", bar, tag("ul", *legend, class_="legend"))
    columns = ("module", "bits", "group", "how many", "weights", "MB", "of the graph")
    kinds = [
        _kind_row(kind, modules, size.graph_bytes) for kind, modules in _by_kind(weights.modules)
    ]
    yield table(f"{title}: the graph’s weights by kind of module and bits", columns, kinds)
    every = [_row(module, size.graph_bytes) for module in weights.modules]
    if len(every) > len(kinds):
        own = ("module", "bits", "group", "weights", "MB", "of the graph")
        caption = f"{title}: every module’s bits and bytes"
        yield fold(f"All {len(every)} modules", table(caption, own, every))
    yield tag(
        "p",
        "A module’s bytes are its codes, scales and zero points. One that serves as embedding and "
        "head counts once.",
        class_="note",
    )


def _by_kind(modules: list[GraphModule]) -> list[tuple[str, list[GraphModule]]]:
    """Modules of the same name but for the layer's number, with the same bits and group size."""
    found: dict[tuple[str, int, int], list[GraphModule]] = {}
    for module in modules:
        kind = _NUMBER.sub(".*", module.name)
        found.setdefault((kind, module.bits, module.group_size or 0), []).append(module)
    ordered = sorted(found.items(), key=lambda entry: -sum(m.bytes for m in entry[1]))
    return [(kind, group) for (kind, *_), group in ordered]


def _kind_row(kind: str, modules: list[GraphModule], whole: int) -> list[str]:
    name, *cells = _cells(
        kind, modules[0], sum(m.values for m in modules), sum(m.bytes for m in modules), whole
    )
    return [name, *cells[:2], str(len(modules)), *cells[2:]]


def _row(module: GraphModule, whole: int) -> list[str]:
    return _cells(module.name, module, module.values, module.bytes, whole)


def _cells(name: str, module: GraphModule, values: int, count: int, whole: int) -> list[str]:
    return [
        join([foreign(name)]),
        f"{module.bits}",
        "–" if module.group_size is None else f"{module.group_size}",
        f"{values:,}",
        f"{count / 1e6:.3f}",
        percent(count / whole) if whole else "–",
    ]
