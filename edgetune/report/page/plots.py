"""Plots as inline SVG that fit any width without a script.

Marks lie in per cent of the width, so text keeps its size on a phone; colours are classes of the
page's style sheet, light and dark. Every plot has a title and a description in words, every mark a
title of its own, and the same figures stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgetune.report.page.elements import Markup, markup, tag

# KL below this, nats, is the float model for all that can be seen: drawn, it squeezes the others.
NEAREST_DRAWN = 1e-6
# Where the plotting area begins and ends, in per cent of the width.
_LEFT, _RIGHT = 11.0, 99.0
_TOP, _BOTTOM = 20.0, 40.0


@dataclass(frozen=True)
class Dot:
    """A mark at x (a share of the width, 0…1) and y (a value), with its name."""

    x: float
    y: float
    name: str
    class_: str = "package"
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Lane:
    """A row of values on a shared axis: single ones, and quantiles (5, 25, 50, 75, 95 %)."""

    name: str
    class_: str
    dots: Sequence[float] = ()
    middle: float | None = None
    quantiles: Sequence[float] = ()


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values from at most `low` to at least `high`, for a linear axis."""
    span = high - low or abs(high) or 1.0
    raw = span / max(1, most - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around two positive values; thinned out to five."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    step = math.ceil((last - first) / 4)
    last = first + step * math.ceil((last - first) / step)
    return [10.0**power for power in range(first, last + 1, step)]


def figure(plot: str, caption: str) -> Markup:
    """A plot with its caption below."""
    return tag("figure", plot, tag("figcaption", caption))


def dot_plot(
    title: str,
    description: str,
    dots: Sequence[Dot],
    x_labels: Sequence[tuple[float, str]],
    x_name: str,
    y_name: str,
    line: tuple[float, str] | None = None,
    height: int = 260,
    bars: bool = False,
) -> Markup:
    """Dots (or, with `bars`, columns from zero) over places on the x axis, with their bounds;
    `line`: a level to compare with. The y axis is logarithmic for dots that are all positive."""
    values = [v for d in dots for v in (d.y, d.low, d.high) if v is not None]
    values += [line[0]] if line else []
    logarithmic = not bars and min(values) > 0
    ticks = (
        log_ticks(min(values), max(values))
        if logarithmic
        else nice_ticks(min(0.0, *values), max(values))
    )
    floor = height - _BOTTOM

    def y(value: float) -> float:
        share = (
            math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])
            if logarithmic
            else (value - ticks[0]) / (ticks[-1] - ticks[0])
        )
        return floor - share * (floor - _TOP)

    marks = [markup("")]
    for tick in ticks:
        unit = f" {y_name}" if tick == ticks[-1] else ""
        marks.append(_line(0, _RIGHT, y(tick), y(tick), "grid"))
        marks.append(_text(0, y(tick) - 4, f"{short(tick)}{unit}", "start"))
    marks += [_text(_x(place), floor + 17, label, "middle") for place, label in x_labels]
    marks.append(_text((_LEFT + _RIGHT) / 2, height - 4, x_name, "middle", "axis"))
    if line is not None:
        marks.append(_line(0, _RIGHT, y(line[0]), y(line[0]), "limit"))
        marks.append(_text(_RIGHT, y(line[0]) - 5, line[1], "end", "limit-text"))
    width = 0.62 * (_RIGHT - _LEFT) / max(1, len(dots))
    for dot in dots:
        name = tag("title", dot.name)
        place = _x(dot.x)
        if bars:
            top, base = y(max(dot.y, 0.0)), y(max(0.0, ticks[0]))
            marks.append(
                tag(
                    "rect",
                    name,
                    x=f"{place - width / 2:.2f}%",
                    y=f"{top:.1f}",
                    width=f"{width:.2f}%",
                    height=f"{max(base - top, 1.0):.1f}",
                    class_=f"mark {dot.class_}",
                )
            )
        if dot.low is not None and dot.high is not None:
            marks.append(_line(place, place, y(dot.low), y(dot.high), "whisker"))
        if not bars:
            marks.append(_circle(place, y(dot.y), 4.0, dot.class_, name))
        if dot.label:
            marks.append(_text(place, y(dot.y) - 9, dot.label, "middle", "axis"))
    return _svg(title, description, height, marks)


def lane_plot(title: str, description: str, lanes: Sequence[Lane], unit: str) -> Markup:
    """Rows of values on one linear axis from zero: each as a dot, the middle as a tall tick;
    quantiles as a thin line (5 to 95 %) under a thick one (25 to 75 %)."""
    shown = [v for lane in lanes for v in (*lane.dots, *lane.quantiles)]
    shown += [lane.middle for lane in lanes if lane.middle is not None]
    ticks = nice_ticks(0.0, max(shown))
    row = 54
    floor = row * len(lanes) + 6

    def x(value: float) -> float:
        return 0.5 + 98.5 * value / ticks[-1]

    marks = [markup("")]
    for tick in ticks:
        marks.append(_line(x(tick), x(tick), 4, floor, "grid"))
        anchor = "start" if tick == ticks[0] else "end" if tick == ticks[-1] else "middle"
        label = f"{short(tick)} {unit}" if tick == ticks[-1] else short(tick)
        marks.append(_text(x(tick), floor + 16, label, anchor))
    for number, lane in enumerate(lanes):
        middle = number * row + 38.0
        marks.append(_text(0.5, middle - 16, lane.name, "start", "axis"))
        if lane.quantiles:
            p5, p25, _, p75, p95 = lane.quantiles
            marks.append(_line(x(p5), x(p95), middle, middle, f"range {lane.class_}"))
            marks.append(_line(x(p25), x(p75), middle, middle, f"box {lane.class_}"))
        marks += [
            _circle(x(dot), middle, 4.5, lane.class_, tag("title", f"{short(dot)} {unit}"))
            for dot in lane.dots
        ]
        if lane.middle is not None:
            place = x(lane.middle)
            marks.append(_line(place, place, middle - 10, middle + 10, "middle"))
    return _svg(title, description, floor + 22, marks)


def allowance_bar(used: float, low: float, high: float) -> Markup:
    """How much of a limit's allowance is used, for the eye alone: the words stand beside it. The
    limit is the line in the middle."""

    def x(value: float) -> float:
        return 50.0 * min(max(value, 0.0), 1.86) + 3.0

    limit = _line(53, 53, 2, 16, "limit")
    bounds = _line(x(low), x(high), 9, 9, "range package")
    dot = _circle(x(used), 9, 4.0, "package", markup(""))
    base = _line(0.5, 99.5, 9, 9, "grid")
    return tag(
        "svg", base, limit, bounds, dot, width="100%", height="18", class_="allowance",
        aria_hidden="true", focusable="false",
    )  # fmt: skip


def stacked_bar(title: str, description: str, parts: Sequence[tuple[str, float, str]]) -> Markup:
    """One bar of shares: (name, size, class)."""
    total = math.fsum(size for _, size, _ in parts) or 1.0
    place, marks = 0.0, [markup("")]
    for name, size, class_ in parts:
        width = 100 * size / total
        marks.append(
            tag(
                "rect",
                tag("title", f"{name}: {100 * size / total:.1f} %"),
                x=f"{place:.3f}%",
                y="0",
                width=f"{max(width, 0.05):.3f}%",
                height="26",
                class_=f"part {class_}",
            )
        )
        place += width
    return _svg(title, description, 26, marks)


def short(value: float) -> str:
    """A tick: `0.5`, `2`, `1e-05`."""
    if value == 0:
        return "0"
    text = f"{value:.3g}"
    if "e" in text and 1e-4 < abs(value) < 1e6:
        text = f"{value:.0f}"
    return text.replace("-", "−")


def _svg(title: str, description: str, height: int, marks: Sequence[str]) -> Markup:
    """A plot's frame. Its name is an attribute: ids would have to be unique over all reports."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *marks,
        width="100%",
        height=str(height),
        role="img",
        aria_label=f"{title}. {description}",
        class_="plot",
    )


def _x(share: float) -> float:
    return _LEFT + share * (_RIGHT - _LEFT)


def _line(x1: float, x2: float, y1: float, y2: float, class_: str) -> Markup:
    return tag(
        "line", x1=f"{x1:.2f}%", x2=f"{x2:.2f}%", y1=f"{y1:.1f}", y2=f"{y2:.1f}", class_=class_
    )


def _circle(x: float, y: float, radius: float, class_: str, name: Markup) -> Markup:
    place = {"cx": f"{x:.2f}%", "cy": f"{y:.1f}", "r": f"{radius:g}"}
    return tag("circle", *([name] if name else []), class_=f"mark {class_}", **place)


def _text(x: float, y: float, text: str, anchor: str, class_: str = "tick") -> Markup:
    return tag("text", text, x=f"{x:.2f}%", y=f"{y:.1f}", text_anchor=anchor, class_=class_)
