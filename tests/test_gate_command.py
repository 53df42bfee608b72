"""`edgetune gate` from outside: documents, exit codes, files, the self-test's outcome."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgetune.__main__ import run
from edgetune.validate import gate_self_test
from tests.report.compared import put, whole
from tests.report.test_gate_bad_input import make_package


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


def gate(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = run(["gate", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize(
    ("kind", "code", "verdict"),
    [({}, 0, "pass"), ({"wrong": range(60)}, 1, "fail"), ({"items": 60}, 5, "inconclusive")],
)
def test_exit_code_document_and_files_agree_whatever_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: Any, code: int, verdict: str
) -> None:
    report = put(tmp_path / "r.json", whole(**kind))
    junit, summary = tmp_path / "o" / "g.xml", tmp_path / "o" / "g.md"
    files = ("--junit", junit, "--summary", summary)
    found, out, err = gate(capsys, report, "--json", "--annotations", *files)
    value = json.loads(out)
    assert (found, value["verdict"]) == (code, verdict)
    assert {"name", "value", "low", "high", "limit", "verdict", "report"} <= set(value["checks"][0])
    assert value["reports"][0]["verdict"] == verdict
    assert "::" in err
    root = ElementTree.parse(junit).getroot()
    assert (root.get("failures") != "0") == (verdict == "fail")
    assert (root.get("errors") != "0") == (verdict == "inconclusive")
    assert verdict in summary.read_text().splitlines()[0]
    # The same without --json: the verdict in the last line, annotations beside the table.
    again, out, _ = gate(capsys, report)
    assert again == code
    assert out.splitlines()[-1] == f"gate     {verdict}: 1 report, 1 {verdict}"
    _, out, _ = gate(capsys, report, "--annotations")
    assert out.splitlines()[-1].startswith("::")


def test_a_baseline_may_be_a_report_a_package_or_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package(tmp_path / "demo")
    inputs = json.loads((package / "reports" / "r.json").read_text())["inputs"]
    worse = put(tmp_path / "new.json", whole(kl=0.03, inputs=inputs))
    for place in (package, package / "reports", package / "reports" / "r.json", tmp_path / "out"):
        if place.name == "out":
            place.mkdir()
            package.rename(place / "demo")
        code, out, _ = gate(capsys, worse, "--baseline", place, "--json")
        failed = [c["name"] for c in json.loads(out)["checks"] if c["verdict"] == "fail"]
        assert (code, failed) == (1, ["kl_mean_regression"])
    code, out, _ = gate(capsys, worse, "--baseline", tmp_path / "out")
    assert "since the baseline" in out
    assert "McNemar p = 1" in out


def test_a_package_that_carries_none_of_the_items_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Private data: measured on items that stay with the build, and the report names both.
    for key, code in (("shipped_self_test", 0), ("of_nothing", 4)):
        package = make_package(tmp_path / key, source="sampled")
        report = json.loads((package / "reports" / "r.json").read_text())
        report["inputs"][key] = report["inputs"]["self_test"]
        report["inputs"]["self_test"] = "another"
        put(package / "reports" / "r.json", report)
        assert gate(capsys, package)[0] == code


def test_a_link_that_leads_to_itself_becomes_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit = tmp_path / "g.xml"
    junit.symlink_to(junit)
    code, _, _ = gate(capsys, put(tmp_path / "r.json", whole()), "--junit", junit)
    assert (code, junit.is_file()) == (0, True)


def test_the_report_of_the_right_device_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a", 6_000_000), ("b", 60_000_000)):
        same = {"identifier": f"demo@{name}", "device": name, "size__package_bytes": size}
        put(tmp_path / "old" / f"{name}.json", whole(**same))
        put(tmp_path / "new" / f"{name}.json", whole(**same, examples=[{"id": "1"}]))
    code, out, _ = gate(capsys, tmp_path / "new", "--baseline", tmp_path / "old", "--json")
    assert code == 0
    pairs = [(r["identifier"], r["baseline"]["identifier"]) for r in json.loads(out)["reports"]]
    assert pairs == [("demo@a", "demo@a"), ("demo@b", "demo@b")]


def test_recipe_and_device_match_where_the_name_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = put(tmp_path / "old.json", whole(identifier="renamed@this-machine"))
    new = put(tmp_path / "new.json", whole())
    code, out, _ = gate(capsys, new, "--baseline", old, "--json")
    assert (code, json.loads(out)["reports"][0]["baseline"]["identifier"]) == (
        0,
        "renamed@this-machine",
    )


def test_what_hinders_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = {"edgetune": "0.0.9", "torch": "2.10"}
    old = put(tmp_path / "old.json", whole(environment__versions=versions, variant="cpu-fp32"))
    new = put(tmp_path / "new.json", whole())
    code, _, err = gate(capsys, new, "--baseline", old)
    assert code == 0
    assert "warning: the baseline was made by edgetune 0.0.9, this report by 0.1.0" in err
    assert "the baseline is of the variant cpu-fp32" in err
    code, _, err = gate(capsys, new, "--baseline", new)
    assert (code, "the baseline is this very report" in err) == (0, True)
    failing = put(tmp_path / "bad.json", whole(wrong=range(60)))
    code, _, err = gate(capsys, new, "--baseline", failing)
    assert (code, "the baseline's own verdict is fail" in err) == (0, True)


def stand_in(monkeypatch: pytest.MonkeyPatch, *verdicts: str) -> None:
    """The self-test's measurement, with outcomes of a test's choice."""
    expected = ("pass", "fail", "no pass")

    def self_test_gate(progress: Callable[[str], None]) -> dict[str, Any]:
        progress("measuring")
        checks = []
        for number, (hoped, verdict) in enumerate(zip(expected, verdicts, strict=False)):
            value = 1.0 if number < 2 else None
            right = verdict != "pass" if hoped == "no pass" else verdict == hoped
            figures = dict.fromkeys(("value", "low", "high", "limit"), value)
            row = {"name": f"case {number}", "expected": hoped, "verdict": verdict, **figures}
            checks.append({**row, "as_expected": right})
        return {"verdict": gate_self_test.overall(checks), "checks": checks}

    monkeypatch.setattr(gate_self_test, "self_test_gate", self_test_gate)


@pytest.mark.parametrize(
    ("verdicts", "code", "words"),
    [
        (("pass", "fail", "inconclusive"), 0, "gate     pass: each of 3 outcomes is as expected"),
        (("pass", "fail", "pass"), 1, "gate     fail: 1 of 3 outcomes are wrong"),
        (("fail", "fail"), 1, "gate     fail: 1 of 2"),
        (("pass", "pass"), 1, "gate     fail: 1 of 2"),
        (("inconclusive", "fail"), 5, "gate     inconclusive: too noisy here to tell 1 of 2"),
        ((), 1, "gate     fail: 0 of 0"),
    ],
)
def test_the_self_test_passes_only_when_each_outcome_is_as_expected(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verdicts: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    stand_in(monkeypatch, *verdicts)
    found, out, _ = gate(capsys, "--self-test")
    assert (found, words in out) == (code, True)
    found, out, _ = gate(capsys, "--self-test", "--json")
    assert (found, len(json.loads(out)["checks"])) == (code, len(verdicts))
