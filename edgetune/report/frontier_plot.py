"""Size against KL as one self-contained SVG: no script, no font, no link."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from edgetune.report.page.plots import NEAREST_DRAWN

_WIDTH, _HEIGHT = 860, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 150, 48, 60
# Of a label: a line's height, the mean width of a letter, and how far off its point it begins.
_LINE, _LETTER, _NEAR = 15.0, 7.0, 9.0
_COLOURS = {
    "pass": "#1a7f37",
    "fail": "#cf222e",
    "inconclusive": "#9a6700",
    None: "#57606a",
}
Box = tuple[float, float, float, float]  # left, top, right, bottom
_STYLE = (
    "text{font:13px sans-serif;fill:#1f2328}.grid{stroke:#d0d7de}.way{stroke:#57606a;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}.back{fill:#0d1117}}"
    ".back{fill:#fff}"
)


def frontier_svg(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `search` that have a size and a KL: MB to the right, KL (logarithmic) upwards;
    the frontier is joined. Those nearer than a millionth of a nat are named beneath the title.
    Raises ValueError where none has both."""
    known = [r for r in rows if r["bytes"] and r["kl_mean"] and r["kl_mean"]["value"] > 0]
    if not known:
        msg = "no row has a size and a KL"
        raise ValueError(msg)
    shown = [r for r in known if r["kl_mean"]["value"] >= NEAREST_DRAWN] or known
    left_out = [r for r in known if r not in shown]
    sizes: list[float] = [row["bytes"] / 1e6 for row in shown]
    logs = [math.log10(row["kl_mean"]["value"]) for row in shown]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    low, high = (low, high) if high > low else (low - 1, high)
    least, most = 0.95 * min(sizes), 1.02 * max(sizes)

    def across(size: float) -> float:
        return _LEFT + (size - least) / (most - least) * (_WIDTH - _LEFT - _RIGHT)

    def up(log: float) -> float:
        return _HEIGHT - _BOTTOM - (log - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    places = [(across(size), up(log)) for size, log in zip(sizes, logs, strict=True)]
    way = " ".join(
        f"{x:.1f},{y:.1f}" for (x, y), row in zip(places, shown, strict=True) if row["frontier"]
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_in_words(known))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text x="{_LEFT}" y="26" font-weight="bold">{escape(title)}</text>',
        *_note(left_out),
        _legend({row["verdict"] for row in shown}),
        *(_line(up(n), f"{10.0**n:g}") for n in range(low, high + 1)),
        *_sizes(least, most, across),
        f'<text x="{(_WIDTH - _RIGHT + _LEFT) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">'
        f"size, MB</text>",
        f'<text x="16" y="{_HEIGHT / 2}" transform="rotate(-90 16 {_HEIGHT / 2})" '
        'text-anchor="middle">KL from the trained model, nats</text>',
        f'<polyline class="way" points="{way}"/>',
        *(_point(x, y, row) for (x, y), row in zip(places, shown, strict=True)),
        *_labels(places, [_label(row) for row in shown]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _line(y: float, text: str) -> str:
    right = _WIDTH - _RIGHT
    return (
        f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _sizes(least: float, most: float, across: Any) -> Iterator[str]:
    step = 10 ** math.floor(math.log10(max(most - least, 1e-9)))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (most - least) / s <= 8)
    for number in range(math.ceil(least / step), math.floor(most / step) + 1):
        x = across(number * step)
        yield (
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">'
            f"{number * step:g}</text>"
        )


def _point(x: float, y: float, row: Mapping[str, Any]) -> str:
    colour = _COLOURS.get(row["verdict"], _COLOURS[None])
    fill = colour if row["frontier"] else "none"
    words = f"{row['scheme']}: {_figures(row)}"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" stroke="{colour}" fill="{fill}">'
        f"<title>{escape(words)}</title></circle>"
    )


def _label(row: Mapping[str, Any]) -> str:
    name = str(row["scheme"])
    return f"{name} ({row['label']})" if row["label"] == "predicted" else name


def _labels(places: Sequence[tuple[float, float]], texts: Sequence[str]) -> Iterator[str]:
    """Each text at the first place near its point that no other text and no point has; from one
    that had to go further off a line leads to its point."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    for (x, y), text in zip(places, texts, strict=True):
        width = _LETTER * len(text)
        free = (box for box in _around(x, y, width) if not any(_meet(box, own) for own in taken))
        box = next(free, next(_around(x, y, width)))
        taken.append(box)
        left, top, right, bottom = box
        end = min(max(x, left), right), min(max(y, top), bottom)
        if math.dist(end, (x, y)) > 2 * _NEAR:
            yield (
                f'<line class="way" x1="{x:.1f}" y1="{y:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
            )
        yield f'<text x="{left:.1f}" y="{bottom - 3:.1f}">{escape(text)}</text>'


def _around(x: float, y: float, width: float) -> Iterator[Box]:
    """Places for a text of this width, the nearest first: right and left of the point, a little
    above it (the frontier falls to the right), then ever further down and up."""
    for number in range(2 * int(_HEIGHT / _LINE)):
        shift = (number + 1) // 2 * _LINE * (1 if number % 2 else -1)
        top = y - 0.9 * _LINE + shift
        for left in (x + _NEAR, x - _NEAR - width):
            inside = left >= _LEFT and left + width <= _WIDTH
            if inside and _TOP - _LINE <= top <= _HEIGHT - _BOTTOM - _LINE:
                yield left, top, left + width, top + _LINE
    yield x + _NEAR, y - _LINE, x + _NEAR + width, y


def _meet(one: Box, other: Box) -> bool:
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart


def _legend(verdicts: Collection[str | None]) -> str:
    """What filling and colours say."""
    words = "".join(
        f' · <tspan font-weight="bold" style="fill:{colour}">{verdict}</tspan>'
        for verdict, colour in _COLOURS.items()
        if verdict is not None and verdict in verdicts
    )
    return (
        f'<text x="{_WIDTH - 10}" y="{_HEIGHT - 14}" text-anchor="end">'
        f"filled: on the frontier{words}</text>"
    )


def _note(left_out: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if left_out:
        names = ", ".join(f"{_label(row)} ({row['bytes'] / 1e6:.1f} MB)" for row in left_out)
        words = f"not drawn, nearer than {NEAREST_DRAWN:g} nats: {names}"
        yield f'<text x="{_WIDTH - 10}" y="26" text-anchor="end">{escape(words)}</text>'


def _figures(row: Mapping[str, Any]) -> str:
    verdict = f", {row['verdict']}" if row["verdict"] else ""
    kl = row["kl_mean"]["value"]
    return f"{row['bytes'] / 1e6:.1f} MB, KL {kl:.3g} nats, {row['label']}{verdict}"


def _in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{row['scheme']}: {_figures(row)}" for row in rows)
