"""What survived of the fine-tune, and where the package differs: by layer, by place in answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from edgetune.report.long_context_words import long_context_lines
from edgetune.report.page.elements import Markup, fold, items, table, tag
from edgetune.report.page.plots import Dot, dot_plot, figure
from edgetune.report.page.shown import Shown
from edgetune.report.page.verdict import with_pills
from edgetune.report.schema import Interval, ModuleSurvival, PositionKl, Report
from edgetune.report.survival_words import (
    SURVIVAL_COLUMNS,
    certificate_lines,
    is_below_noise,
    survival_rows,
)
from edgetune.report.terminal import COLUMNS, fidelity_table_rows
from edgetune.report.words import flips_of, nats

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d{1,4})\.")


def survived(shown: Shown, level: str) -> Markup:
    """Task metrics and fidelity, the package against the trained model."""
    report = shown.report
    parts = [
        tag(level, "What survived"),
        table(
            f"{shown.title}: the package against the trained model",
            COLUMNS,
            with_pills(fidelity_table_rows(report, shown.judgement)),
        ),
    ]
    if flips := flips_of(report):
        parts.append(tag("p", f"{flips[0].upper()}{flips[1:]}."))
    if long := list(long_context_lines(report)):
        lines = (f"{text[0].upper()}{text[1:]}." for text in long)
        parts += [tag("p", "On long texts, where the model’s arithmetic changes:"), items(lines)]
    if merges := list(certificate_lines(report)):
        parts.append(tag("p", f"Merge: {'; '.join(merges)}."))
    return tag("section", *parts)


def where_it_differs(shown: Shown, level: str, below: str) -> Markup:
    """KL by layer and by place in the answer."""
    report = shown.report
    return tag(
        "section",
        tag(level, "Where it differs"),
        tag(below, "By layer"),
        *_by_layer(shown),
        tag(below, "By place in the answer"),
        *_by_position(report, shown.title),
    )


def _by_layer(shown: Shown) -> Iterator[Markup]:
    survival = shown.report.survival
    if survival is None:
        yield tag("p", "Not measured: a package alone has no base weights to compare with.")
        return
    if not survival.modules:
        yield tag("p", f"Not measured: {survival.reason or 'no module was changed'}.")
        return
    modules = survival.modules
    alone = [m for m in modules if m.kl_mean is not None]
    noisy = [m for m in modules if m.snr is not None]
    if not alone:
        why = survival.not_run or "no reason was given"
        yield tag(
            "p",
            f"KL of each module alone: not measured ({why}). Known from the weights is the signal "
            "to noise: the size of the fine-tune’s change over the size of what quantization adds.",
        )
    if alone:
        yield figure(
            _layers_plot(alone, "KL with this module alone quantized", "nats", _kl_of, None),
            f"Each dot is a module that the fine-tune changed, quantized alone over "
            f"{survival.items} items; what lies high costs most.",
        )
    elif noisy:
        limit = (1.0, "noise as large as the change")
        yield figure(
            _layers_plot(noisy, "Signal to noise of each module", "ratio", _snr_of, limit),
            f"Each dot is a module that the fine-tune changed; {_below(noisy)}. It says where to "
            "look, not that something was lost.",
        )
    rows = survival_rows(shown.report, len(modules))
    caption = f"{shown.title}: what quantization leaves of the fine-tune in each module"
    yield fold(f"All {len(modules)} modules", table(caption, SURVIVAL_COLUMNS, rows))
    if survival.not_found:
        names = ", ".join(survival.not_found)
        yield tag("p", f"Not found in the graph by name: {names}.", class_="note")


def _kl_of(module: ModuleSurvival) -> float:
    return module.kl_mean.value if module.kl_mean else 0.0


def _snr_of(module: ModuleSurvival) -> float:
    return module.snr or 0.0


def _below(modules: list[ModuleSurvival]) -> str:
    count = sum(is_below_noise(m) for m in modules)
    if not count:
        return "in all of them the change is larger than the noise"
    return f"in {count} of {len(modules)} the noise is larger than the change"


def _layers_plot(
    modules: list[ModuleSurvival],
    title: str,
    unit: str,
    value: Callable[[ModuleSurvival], float],
    line: tuple[float, str] | None,
) -> Markup:
    """Dots over layers; modules outside the layers (embedding, head) stand at the right end."""
    layers = sorted({n for m in modules if (n := layer_of(m.name)) is not None})
    outside = any(layer_of(m.name) is None for m in modules)
    places: list[int | None] = [*layers, *([None] if outside else [])]
    step = 1 / max(1, len(places))
    x_of = {layer: (number + 0.5) * step for number, layer in enumerate(places)}
    every = -(-len(places) // 12)
    labels = [
        (x_of[layer], "other" if layer is None else str(layer))
        for number, layer in enumerate(places)
        if number % every == 0 or layer is None
    ]
    dots, seen = [], dict.fromkeys(places, 0)
    for module in modules:
        layer = layer_of(module.name)
        # Side by side, so that no dot hides another one.
        seen[layer] += 1
        side = (seen[layer] // 2) * (1 if seen[layer] % 2 else -1)
        measured = value(module)
        low = is_below_noise(module)
        name = f"{module.name}: {measured:.3g} {unit}"
        dots.append(
            Dot(
                x_of[layer] + side * min(0.02, step / 8),
                measured,
                name,
                "bad" if low else "package",
            )
        )
    worst = max(modules, key=value) if unit == "nats" else min(modules, key=value)
    description = (
        f"{len(modules)} modules in {len(layers)} layers. The one to look at first is "
        f"{worst.name} with {value(worst):.3g} {unit}."
    )
    return dot_plot(title, description, dots, labels, "layer", unit, line)


def layer_of(module: str) -> int | None:
    """The layer in a module's name; null for an embedding or a head."""
    found = _LAYER.search(module)
    return int(found[1]) if found else None


def _by_position(report: Report, title: str) -> Iterator[Markup]:
    found = report.fidelity.kl_by_position
    if not found:
        reasons = report.fidelity.reasons
        why = reasons.get("kl_by_position") or "the report was made by a version without it"
        yield tag("p", f"Not measured: {why}.")
        return
    step = 1 / len(found)
    dots = [
        Dot((n + 0.5) * step, row.kl.value, _place_in_words(row), low=row.kl.low, high=row.kl.high)
        for n, row in enumerate(found)
    ]
    labels = [((n + 0.5) * step, str(row.first)) for n, row in enumerate(found)]
    worst = max(found, key=lambda row: row.kl.value)
    plot = dot_plot(
        "KL by place in the answer",
        f"{len(found)} groups of places. The largest mean is {nats(worst.kl.value)} nats at "
        f"{_range(worst)}.",
        dots, labels, "scored token of the answer, from", "nats", bars=True,
    )  # fmt: skip
    bound = "" if report.fidelity.kl_kind == "whole vocabulary" else " A lower bound (top k)."
    yield figure(
        plot,
        "Mean KL at each place, with bounds: an answer that drifts away grows to the right."
        + bound,
    )
    rows = [
        (_range(row), f"{row.positions:,}", nats(row.kl.value), _bounds(row.kl)) for row in found
    ]
    columns = ("tokens of the answer", "positions", "mean KL, nats", "bounds")
    yield fold("These figures in a table", table(f"{title}: KL by place", columns, rows))


def _place_in_words(row: PositionKl) -> str:
    return f"{_range(row)}: {nats(row.kl.value)} nats over {row.positions} positions"


def _range(row: PositionKl) -> str:
    return str(row.first) if row.first == row.last else f"{row.first} to {row.last}"


def _bounds(figure: Interval) -> str:
    return f"{nats(figure.low)} to {nats(figure.high)}"
