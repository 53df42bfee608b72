"""The page's structure: whole, still, escaped, complete. A browser looks at it in
tests/integration/test_page_in_a_browser.py."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgetune.report.page.elements import Markup, join, readable, table, tag
from edgetune.report.page.examples import parted
from edgetune.report.page.page import make_page, to_page
from edgetune.report.page.plots import log_ticks, nice_ticks
from edgetune.report.page.shown import Shown
from edgetune.report.page.survived import layer_of
from edgetune.report.publish import publish_report
from edgetune.report.schema import parse_report
from edgetune.report.verdict import judge
from tests.report.full import failing, full
from tests.report.sample import make

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\x1b\u202e"


def parsed(page: str) -> ElementTree.Element:
    """The page as XML: stricter than HTML, so that nothing is left for a browser to guess."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def several(*values: dict[str, Any]) -> str:
    reports = [parse_report(value) for value in values]
    return make_page(
        [Shown(f"{r.identifier} ({n})", r, judge(r), ("a note",)) for n, r in enumerate(reports)]
    )


PAGES = {
    "full": lambda: to_page(full()),
    "by weights": lambda: to_page(full(alone=False)),
    "failing": lambda: to_page(failing()),
    "bare": lambda: to_page(make()),
    "compared": lambda: several(full(), failing(), make()),
}


@pytest.fixture(params=list(PAGES))
def page(request: pytest.FixtureRequest) -> str:
    return PAGES[request.param]()


def test_it_is_one_whole_document_that_loads_and_runs_nothing(page: str) -> None:
    root = parsed(page)
    assert root.get("lang") == "en"
    assert len(words(root.find("head/title"))) > 5  # type: ignore[arg-type]
    policy = next(m.get("content") for m in root.iter("meta") if m.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for element in root.iter():
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "img", "base")
        for name in element.attrib:
            assert name not in ("src", "srcset", "href", "action", "style", "data"), element.tag
            assert not name.startswith("on")
    style = words(root.find("head/style"))  # type: ignore[arg-type]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?:", page)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_headings_go_down_one_at_a_time_and_the_verdict_is_first(page: str) -> None:
    levels = [int(e.tag[1]) for e in parsed(page).iter() if re.fullmatch(r"h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_tables_have_captions_and_scopes_and_plots_have_names(page: str) -> None:
    root = parsed(page)
    tables = list(root.iter("table"))
    assert len(tables) > 3
    captions = [words(t.find("caption")) for t in tables]  # type: ignore[arg-type]
    assert all(captions)
    assert len(captions) == len(set(captions))
    for one in tables:
        columns = one.findall("thead/tr/th")
        assert [th.get("scope") for th in columns] == ["col"] * len(columns)
        assert all(words(th) for th in columns)
        for row in one.findall("tbody/tr"):
            assert len(row) == len(columns)
            assert (row[0].tag, row[0].get("scope")) == ("th", "row")
    for plot in root.iter("svg"):
        if plot.get("role") == "img":
            assert len(plot.get("aria-label") or "") > 20
            assert plot.find("title") is not None
            assert plot.find("desc") is not None
            assert re.search(r"\d", plot.get("aria-label") or "")
        else:
            assert plot.get("aria-hidden") == "true"


def numbers(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


@pytest.mark.parametrize("value", [full(), failing(), make()], ids=["full", "failing", "bare"])
def test_every_figure_of_the_json_is_on_the_page(value: dict[str, Any]) -> None:
    shown = set(re.split(r"[\s,]+", " ".join(parsed(to_page(value)).itertext())))
    missing = set(numbers(value)) - shown
    assert not missing


def test_the_verdict_is_judged_anew() -> None:
    edited = copy.deepcopy(failing())
    edited["verdict"] = "pass"
    for check in edited["checks"]:
        check["verdict"] = "pass"
    root = parsed(to_page(edited))
    assert words(next(root.iter("h1"))).startswith("Fail: demo-erased")
    pills = [words(e) for e in root.iter("span") if (e.get("class") or "").startswith("pill")]
    assert pills.count("fail") >= 3
    assert "it says" not in words(root)


def test_each_check_is_in_words_with_value_bounds_and_limit() -> None:
    root = parsed(to_page(failing()))
    checks = next(t for t in root.iter("table") if "Checks of" in words(t[0]))
    rows = {words(r[0]): [words(c) for c in r[1:5]] for r in checks.findall("tbody/tr")}
    kept = next(cells for name, cells in rows.items() if "retention" in name)
    assert kept == ["fail", "−28.00 %", "≥ 95.00 %", "−31.00 to −25.00"]
    fell = next(cells for name, cells in rows.items() if "exact_match_drop" in name)
    assert fell == ["fail", "49.2 points lost", "≤ 2.0 points lost", "43.9 to 54.5"]
    assert "The package keeps nothing of what the fine-tune changed (limit 95 %)" in words(root)
    speed = next(cells for name, cells in rows.items() if "time_to_answer_ratio" in name)
    assert speed[:2] == ["not measured", "not measured"]
    assert "this host is not a raspberry-pi-5" in words(root)
    exact = next(cells for name, cells in rows.items() if "tokenizer_parity" in name)
    assert exact == ["pass", "0", "≤ 0", "exact"]


def test_what_was_not_measured_says_so_and_why() -> None:
    text = words(parsed(to_page(make())))
    for sentence in (
        "Not measured: a package alone has no base weights to compare with.",
        "Not measured: the report was made by a version without it.",
        "By module and bits: not measured",
        "Not measured: the report has no rounds.",
        "Not known: the report was made by a version without it.",
    ):
        assert sentence in text, sentence
    text = words(parsed(to_page(failing())))
    assert "KL of each module alone: not measured (asked for with --thorough)" in text
    assert "Not measured: this host is not a raspberry-pi-5." in text
    assert "not stated (no LICENSE file)" in text


def test_foreign_text_stays_text() -> None:
    calm, hostile = full(), full()
    hostile["identifier"] = hostile["variant"] = hostile["device"] = HOSTILE
    hostile["environment"]["versions"][HOSTILE] = HOSTILE
    hostile["environment"]["fingerprint"] = HOSTILE
    hostile["fidelity"]["reasons"][HOSTILE] = HOSTILE
    for row in hostile["examples"]:
        row.update(id=HOSTILE, prompt=HOSTILE, reference=HOSTILE, package=f"a {HOSTILE}")
    for module in (*hostile["survival"]["modules"], *hostile["weights"]["modules"]):
        module["name"] = HOSTILE + module["name"]
    hostile["survival"]["not_found"] = [HOSTILE]
    for model in (hostile["provenance"]["base"], *hostile["provenance"]["adapters"]):
        model["name"] = model["commit"] = model["digest"] = HOSTILE
        model["files"] = {HOSTILE: HOSTILE}
        model["license"] = {"name": HOSTILE, "source": HOSTILE, "reason": HOSTILE}
    hostile["provenance"]["steps"] = hostile["provenance"]["versions"] = {HOSTILE: HOSTILE}
    hostile["per_item"]["ids"][0] = HOSTILE
    hostile["task_metrics"][HOSTILE] = hostile["task_metrics"]["exact_match"]
    for page in (to_page(hostile), several(hostile, calm)):
        root = parsed(page)
        assert {e.tag for e in root.iter()} <= {e.tag for e in parsed(several(calm, calm)).iter()}
        assert "<script" not in page
        assert not [e for e in root.iter() for name in e.attrib if name.startswith("on")]
        assert "<script>alert(1)</script>" in words(root)
        assert not [c for c in page if c in "\x00\x1b\u202e"]


def test_markup_is_what_is_so_by_type() -> None:
    assert tag("p", "<b>") == "<p>&lt;b&gt;</p>"
    assert tag("p", tag("b", "&"), title='"') == '<p title="&quot;"><b>&amp;</b></p>'
    assert join(["<", Markup("<br/>")], "&") == "&lt;&amp;<br/>"
    assert table("<c>", ["<a>"], [["<r>"]]).count("<r>") == 0
    assert readable("a\tb\r\nc\x07\u2066\ufffe") == "a\tb\nc\\u0007\\u2066\\ufffe"
    assert readable("\U0001f469\u200d\U0001f4bb") == "\U0001f469\u200d\U0001f4bb"


@pytest.mark.parametrize(
    ("reference", "package", "word", "first", "second"),
    [
        ("a b c", "a x c", 2, "b", "x"),
        ("a b", "a b c", 3, "(ends here)", "c"),
        ("", "c", 1, "(ends here)", "c"),
        ("a  b", "a b", None, None, None),
    ],
)
def test_where_two_answers_part(
    reference: str, package: str, word: int | None, first: str | None, second: str | None
) -> None:
    found, one, other = parted(reference, package)
    assert found == word
    for text, marked in ((one, first), (other, second)):
        mark = re.search(r"<mark>.*first difference: </span>([^<]*)", text)
        assert (mark[1] if mark else None) == marked


def test_answers_side_by_side() -> None:
    root = parsed(to_page(full()))
    first = next(e for e in root.iter("article"))
    assert words(first[0]) == "Item 17: the right answer was lost, KL 0.7300 nats"
    marks = [words(mark) for mark in first.iter("mark")]
    assert marks == ["first difference: kitchen", "first difference: bedroom"]
    private = full()
    for row in private["examples"]:
        row.update(dict.fromkeys(("prompt", "expected", "reference", "package")))
    assert "The answers are left out: private data." in words(parsed(to_page(private)))


def test_layers_are_read_from_names() -> None:
    assert layer_of("model.layers.12.self_attn.q_proj") == 12
    assert layer_of("transformer.h.3.attn.c_attn") == 3
    assert layer_of("lm_head") is None


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0, 37.2), (-3.0, 8.0), (0.0, 1e-7), (5, 5)]
)
def test_linear_ticks_hold_their_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(("low", "high"), [(0.5, 20.0), (1e-9, 3.0), (2.0, 2.0), (1.0, 1.0)])
def test_logarithmic_ticks_hold_their_values(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 6


def test_several_reports_stand_side_by_side() -> None:
    root = parsed(several(full(), failing()))
    assert words(next(root.iter("h1"))) == "2 packages compared"
    head = next(root.iter("table"))
    rows = {words(row[0]): [words(cell) for cell in row[1:]] for row in head.findall("tbody/tr")}
    assert rows["verdict"] == ["pass", "fail"]
    assert rows["time to answer, ms"] == ["200.0", "not measured"]
    assert rows["KL, nats"][1].startswith("1.40")
    assert "different references" not in words(root)
    other = full()
    other["provenance"]["steps"]["reference"] = "another"
    assert "measured against different references" in words(parsed(several(full(), other)))


def test_the_float_model_does_not_squeeze_the_others() -> None:
    nearest = full()
    nearest["fidelity"]["kl_mean"] = {"value": 2e-10, "low": 1e-10, "high": 3e-10}
    text = words(parsed(several(full(), failing(), nearest)))
    assert "Not drawn, nearer than 1e−06 nats: 3." in text
    assert "Not drawn" not in words(parsed(several(full(), nearest)))


def test_a_build_s_report_gets_its_page(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(failing()), encoding="utf-8")
    place, verdict = publish_report(tmp_path / "report.json", tmp_path / "reports")
    assert verdict == "fail"
    root = parsed(place.with_suffix(".html").read_text(encoding="utf-8"))
    assert words(next(root.iter("h1"))).startswith("Fail")
