"""JUnit, annotations and summary say what the verdict says, whatever stands in a report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.report.annotations import MOST_OF_A_TYPE, escape, escape_property, to_annotations
from edgetune.report.collect import Found
from edgetune.report.gate import Outcome, gate_reports
from edgetune.report.junit import clean, to_junit
from edgetune.report.outputs import write_output
from edgetune.report.regression import Margins
from edgetune.report.schema import parse_report
from edgetune.report.summary import MOST_BYTES, to_summary
from tests.report.compared import whole
from tests.report.sample import interval

HOSTILE = "x]]>\x1b[31m\x00</testsuite>&amp;\"'\r\n::error::owned%0A@someone <b>|`"
PASS: dict[str, Any] = {}
FAIL: dict[str, Any] = {"wrong": range(60)}
UNCLEAR: dict[str, Any] = {"items": 60}
REQUIRED: dict[str, Any] = {
    "checks": [{"name": "kl_mean", "limit": 0.05}, {"name": "retention", "limit": 0.9,
                "required": True}],
    "fidelity__retention": None,
}  # fmt: skip
NOTHING: dict[str, Any] = {"checks": []}
SKIPPED: dict[str, Any] = {
    "checks": [{"name": "kl_mean", "limit": 0.05}, {"name": "retention", "limit": 0.9}],
    "fidelity__retention": None,
}


def outcome(*kinds: dict[str, Any], **same: Any) -> Outcome:
    """The outcome over reports of these kinds."""
    found = [
        Found(Path(f"r{n}.json"), parse_report(whole(**{**kind, **same})), str(n))
        for n, kind in enumerate(kinds)
    ]
    return gate_reports(found, None, Margins())


def counts(element: ElementTree.Element) -> dict[str, int]:
    keys = ("tests", "failures", "errors", "skipped")
    return {key: int(element.get(key, "-1")) for key in keys}


def test_junit_has_the_common_shape_and_counts_what_it_holds() -> None:
    root = ElementTree.fromstring(to_junit(outcome(PASS, FAIL, UNCLEAR, REQUIRED, SKIPPED)))
    assert root.tag == "testsuites"
    assert len(root) == 5
    for suite in root:
        assert suite.tag == "testsuite"
        # The order of the common schemas: properties, cases, system-out.
        assert next(child.tag for child in suite) == "properties"
        for case in suite.iter("testcase"):
            assert case.get("name")
            assert case.get("classname") == suite.get("name")
            assert [c.tag for c in case] in (["failure"], ["error"], ["skipped"], ["system-out"])
        assert counts(suite) == {
            "tests": len(suite.findall("testcase")),
            "failures": len(suite.findall("testcase/failure")),
            "errors": len(suite.findall("testcase/error")),
            "skipped": len(suite.findall("testcase/skipped")),
        }
    sums = [sum(counts(suite)[key] for suite in root) for key in counts(root)]
    assert sums == list(counts(root).values())
    assert counts(root) == {"tests": 13, "failures": 1, "errors": 2, "skipped": 1}
    names = [suite.get("name") for suite in root]
    assert len(set(names)) == 5


@pytest.mark.parametrize(
    ("kind", "tag"),
    [(PASS, None), (FAIL, "failure"), (UNCLEAR, "error"), (REQUIRED, "error"), (NOTHING, "error"),
     (SKIPPED, None)],
)  # fmt: skip
def test_a_suite_is_green_exactly_when_its_report_passes(
    kind: dict[str, Any], tag: str | None
) -> None:
    found = outcome(kind)
    suite = ElementTree.fromstring(to_junit(found))[0]
    assert (found.verdict == "pass") == (tag is None)
    for other in ("failure", "error"):
        assert (suite.find(f"testcase/{other}") is not None) == (other == tag)


def test_a_failure_says_in_words_what_was_lost() -> None:
    root = ElementTree.fromstring(to_junit(outcome(FAIL)))
    failure = root.find("testsuite/testcase[@name='exact_match_drop']/failure")
    assert failure is not None
    assert "exact match fell from 95.0 % to 75.0 % (limit 2 points, n = 240)" in (
        failure.get("message") or ""
    )
    assert "limit 0.02" in (failure.text or "")


def test_hostile_text_stays_text_in_all_outputs() -> None:
    found = outcome(PASS, FAIL, identifier=HOSTILE, device=HOSTILE, variant=HOSTILE)
    text = to_junit(found)
    root = ElementTree.fromstring(text)
    assert len(root) == 2
    assert root[0].get("name", "").startswith("x]]> [31m </testsuite>&amp;\"'")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    for line in to_annotations(found):
        assert re.fullmatch(r"::(error|warning|notice) title=[^:,\n\r]*::[^\n\r]*", line)
    summary = to_summary(found)
    # Between backquotes it is shown as it is.
    assert not re.search("<b>|</testsuite>|@someone", re.sub("`[^`\n]*`", "", summary))
    assert "\x1b" not in summary
    assert "\n::error" not in summary


@given(st.text())
def test_clean_text_is_xml(text: str) -> None:
    element = ElementTree.Element("a", name=clean(text))
    element.text = clean(text)
    again = ElementTree.fromstring(ElementTree.tostring(element, encoding="unicode"))
    assert (again.text or "") == again.get("name") == clean(text)
    assert len(clean(text)) == len(text)


@given(st.text())
def test_annotations_are_read_back_as_they_were_meant(text: str) -> None:
    for escaped in (escape(text), escape_property(text)):
        assert "\n" not in escaped
        assert "\r" not in escaped
        back = escaped.replace("%2C", ",").replace("%3A", ":")
        back = back.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
        assert len(back) == len(text)
    assert not {":", ","} & set(escape_property(text))


def test_annotations_by_verdict_and_at_most_ten_of_a_type() -> None:
    lines = to_annotations(outcome(PASS, FAIL, UNCLEAR))
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::notice"]
    assert lines[0].startswith("::error title=demo@this-machine (r1.json)%3A exact_match_drop::")
    many = to_annotations(outcome(*[FAIL] * 14, *[UNCLEAR] * 3))
    errors = [line for line in many if line.startswith("::error")]
    assert len(errors) == MOST_OF_A_TYPE
    assert errors[-1] == "::error title=edgetune gate::5 more, see the table or the summary"
    assert len([line for line in many if line.startswith("::warning")]) == 3
    assert to_annotations(outcome(NOTHING))[0].startswith("::warning")


def test_the_summary_holds_each_report_those_that_do_not_pass_first() -> None:
    text = to_summary(outcome(PASS, FAIL))
    assert text.startswith("# ❌ **fail**: edgetune gate\n")
    assert text.index("## ❌") < text.index("## ✅")
    assert "Flips: 48 of 240 answers changed: 48 right ones became wrong" in text
    assert "McNemar p = " in text
    assert "left out" not in text


def test_the_summary_stays_under_github_s_limit() -> None:
    long = [
        {"id": str(n), "expected": "e" * 500, "reference": "r", "package": "p"} for n in range(5)
    ]
    found = outcome(FAIL, *[PASS] * 3, examples=long)
    whole_text = to_summary(found)
    some = to_summary(found, most_bytes=6000)
    assert len(some.encode()) <= 6000 < len(whole_text.encode())
    assert "## ❌" in some
    assert re.search(r"\d reports left out: the text would be too large", some)
    assert MOST_BYTES < 1 << 20
    many = Outcome("fail", found.gated[:1] * 600)
    assert 1 << 19 < len(to_summary(many).encode()) < 1 << 20


def test_several_reports_have_the_worst_verdict() -> None:
    assert outcome(PASS, PASS).verdict == "pass"
    assert outcome(PASS, UNCLEAR).verdict == "inconclusive"
    assert outcome(UNCLEAR, FAIL, PASS).verdict == "fail"
    assert gate_reports([], None, Margins()).verdict == "inconclusive"


def test_stored_verdicts_are_told_and_not_believed(tmp_path: Path) -> None:
    value = whole(**FAIL)
    value["verdict"] = "pass"
    for check in value["checks"]:
        check["verdict"] = "pass"
    found = gate_reports([Found(Path("r.json"), parse_report(value), "")], None, Margins())
    assert found.verdict == "fail"
    assert found.gated[0].notes == (
        "r.json: it says 'pass', its figures say 'fail': edited by hand?",
        "r.json: it says 'pass' for exact_match_drop, its figures say 'fail': edited by hand?",
    )
    value = whole()
    value["verdict"] = "fail"
    found = gate_reports([Found(Path("r.json"), parse_report(value), "")], None, Margins())
    assert found.verdict == "pass"
    assert len(found.gated[0].notes) == 1


def test_an_edited_limit_or_a_worse_figure_is_judged_anew() -> None:
    value = whole()
    value["checks"][0]["limit"] = 0.001
    found = gate_reports([Found(Path("r.json"), parse_report(value), "")], None, Margins())
    assert found.verdict == "fail"
    value = whole()
    value["fidelity"]["kl_mean"] = interval(9.0, 0.1)
    found = gate_reports([Found(Path("r.json"), parse_report(value), "")], None, Margins())
    assert found.verdict == "fail"
    assert any("contradicts itself" in note for note in found.gated[0].notes)


def test_what_else_was_written_into_the_step_summary_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.md"
    path.write_text("# before")
    write_output(path, "new\n", "--summary")
    assert path.read_text() == "new\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    write_output(path, "more\n", "--summary")
    assert path.read_text() == "new\nmore\n"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.md"]
