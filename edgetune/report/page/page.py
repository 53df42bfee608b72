"""The page: verdict first, then why, what survived, and where everything comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from edgetune import __version__
from edgetune.report.page.compare import comparison
from edgetune.report.page.elements import Markup, foreign, join, tag
from edgetune.report.page.examples import examples
from edgetune.report.page.figures import every_figure
from edgetune.report.page.provenance import provenance
from edgetune.report.page.shown import Shown
from edgetune.report.page.size import sizes
from edgetune.report.page.speed import speed
from edgetune.report.page.survived import survived, where_it_differs
from edgetune.report.page.verdict import WORDS, banner, tiles, why
from edgetune.report.schema import Report, parse_report
from edgetune.report.verdict import judge

GENERATOR = "edgetune"
# Nothing is loaded and nothing runs, whatever a report has in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def to_page(value: Mapping[str, Any] | Report) -> str:
    """One report as a page, its verdicts judged anew."""
    report = value if isinstance(value, Report) else parse_report(value)
    return make_page([Shown(report.identifier, report, judge(report))])


def make_page(all_shown: Sequence[Shown]) -> str:
    """A page of one report, or of several: side by side first, then each in full."""
    if len(all_shown) == 1:
        one = all_shown[0]
        title = f"{WORDS[one.judgement.verdict]}: {one.title}"
        return _document(title, tag("main", *_whole(one, "h1", "h2", "h3")))
    verdicts = [one.judgement.verdict for one in all_shown]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in WORDS if v in verdicts)
    title = f"{len(all_shown)} packages compared"
    head = tag("div", tag("h1", title), tag("p", f"{counts}.", class_="lead"), class_="top")
    parts = [head, comparison(all_shown, "h2")]
    for number, one in enumerate(all_shown, 1):
        parts.append(tag("hr"))
        parts.append(
            tag("div", *_whole(one, "h2", "h3", "h4"), class_="whole", id=f"report-{number}")
        )
    return _document(title, tag("main", *parts))


def _whole(shown: Shown, top: str, level: str, below: str) -> list[Markup]:
    return [
        banner(shown, top),
        tiles(shown.report),
        why(shown, level),
        survived(shown, level),
        where_it_differs(shown, level, below),
        examples(shown, level, below),
        sizes(shown, level),
        speed(shown, level, below),
        provenance(shown, level, below),
        every_figure(shown, level),
    ]


def _document(title: str, main: Markup) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"{GENERATOR} {__version__}"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{title} · edgetune"),
        tag("style", Markup(_style())),
    )
    foot = tag("footer", tag("p", "Made by edgetune ", foreign(__version__), "."))
    top = tag("header", tag("p", "edgetune report"))
    body = tag("body", top, main, foot)
    return join([Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), "\n"])


@cache
def _style() -> str:
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
