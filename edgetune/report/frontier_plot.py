"""Size against KL as one self-contained SVG: no script, no font, no link."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 860, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 150, 48, 60
_COLOURS = {
    "pass": "#1a7f37",
    "fail": "#cf222e",
    "inconclusive": "#9a6700",
    None: "#57606a",
}
_STYLE = (
    "text{font:13px sans-serif;fill:#1f2328}.grid{stroke:#d0d7de}.way{stroke:#57606a;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}.back{fill:#0d1117}}"
    ".back{fill:#fff}"
)


def frontier_svg(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `search` that have a size and a KL: MB to the right, KL (logarithmic) upwards;
    the frontier is joined. Raises ValueError where none has both."""
    shown = [r for r in rows if r["bytes"] and r["kl_mean"] and r["kl_mean"]["value"] > 0]
    if not shown:
        msg = "no row has a size and a KL"
        raise ValueError(msg)
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
        f"<desc>{escape(_in_words(shown))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text x="{_LEFT}" y="26" font-weight="bold">{escape(title)}</text>',
        *(_line(up(n), f"{10.0**n:g}") for n in range(low, high + 1)),
        *_sizes(least, most, across),
        f'<text x="{(_WIDTH - _RIGHT + _LEFT) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">'
        f"size, MB</text>",
        f'<text x="16" y="{_HEIGHT / 2}" transform="rotate(-90 16 {_HEIGHT / 2})" '
        'text-anchor="middle">KL from the trained model, nats</text>',
        f'<polyline class="way" points="{way}"/>',
        *(_point(x, y, row) for (x, y), row in zip(places, shown, strict=True)),
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
    label = f"{row['scheme']} ({row['label']})" if row["label"] == "predicted" else row["scheme"]
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" stroke="{colour}" fill="{fill}">'
        f"<title>{escape(words)}</title></circle>"
        f'<text x="{x + 9:.1f}" y="{y - 6:.1f}">{escape(label)}</text>'
    )


def _figures(row: Mapping[str, Any]) -> str:
    verdict = f", {row['verdict']}" if row["verdict"] else ""
    kl = row["kl_mean"]["value"]
    return f"{row['bytes'] / 1e6:.1f} MB, KL {kl:.3g} nats, {row['label']}{verdict}"


def _in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{row['scheme']}: {_figures(row)}" for row in rows)
