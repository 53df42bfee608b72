"""`edgetune report` from outside: the page, the document, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.__main__ import run
from tests.report.compared import put, whole
from tests.report.full import failing, full
from tests.report.test_gate_bad_input import make_package


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def report(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = run(["report", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_one_report_s_page_goes_into_the_working_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = report(capsys, put(tmp_path / "r.json", failing()))
    assert code == 0
    assert out == "page     edgetune-report.html\n"
    assert "fail          demo-erased@raspberry-pi-5" in err
    page = Path("edgetune-report.html")
    assert "<h1>" in page.read_text(encoding="utf-8")
    # A page of ours may be written again; another file may not, unless it is named.
    assert report(capsys, put(tmp_path / "r.json", full()))[0] == 0
    assert "Pass" in page.read_text(encoding="utf-8")
    page.write_text("<html>my own notes</html>")
    code, _, err = report(capsys, tmp_path / "r.json")
    assert code == 2
    assert "it is no page of edgetune's" in err
    assert page.read_text() == "<html>my own notes</html>"
    assert report(capsys, tmp_path / "r.json", "-o", page)[0] == 0


def test_several_are_compared_and_told_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "all" / "a.json", full())
    put(tmp_path / "all" / "b.json", failing())
    package = make_package(tmp_path / "package")
    before = sorted(p.name for p in package.rglob("*"))
    page = tmp_path / "new" / "c.html"
    code, out, _ = report(capsys, tmp_path / "all", package, "-o", page, "--json")
    value = json.loads(out)
    assert (code, value["page"]) == (0, str(page))
    assert [one["verdict"] for one in value["reports"]] == ["pass", "fail", "pass"]
    assert "3 packages compared" in page.read_text(encoding="utf-8")
    assert sorted(p.name for p in package.rglob("*")) == before


def test_bad_input_has_its_sentence_and_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = put(tmp_path / "r.json", whole())
    package = make_package(tmp_path / "package")
    infinite = json.dumps(whole()).replace("200.0", "1e999", 1)
    edited = whole()
    edited["task_metrics"]["exact_match"]["candidate"] = 0.99
    cases: list[tuple[list[Any], int, str]] = [
        ([], 2, "nothing to show: name a report"),
        ([tmp_path / "none.json"], 4, "no such file"),
        ([good, good], 2, "the same report twice"),
        ([put(tmp_path / "text.json", "not json")], 4, "not a JSON document"),
        ([put(tmp_path / "inf.json", infinite)], 4, "is not a finite number"),
        ([put(tmp_path / "edited.json", edited)], 4, "it contradicts itself"),
        ([good, "-o", tmp_path], 2, "a folder"),
        ([good, "-o", good], 2, "would overwrite the report that it is made of"),
        ([package, "-o", package / "p.html"], 2, "inside the package"),
        ([good, "-o", package / "reports" / "p.html"], 2, "inside the package"),
        ([good, "-o", tmp_path / "r.json" / "p.html"], 3, "cannot be written"),
    ]
    for arguments, code, sentence in cases:
        found, out, err = report(capsys, *arguments)
        assert (found, out) == (code, ""), arguments
        assert err.startswith("error: "), arguments
        assert sentence in err, arguments
        assert "hint: " in err, arguments
        assert not list(Path().iterdir()), arguments


def test_the_default_page_is_not_written_into_a_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_package(tmp_path / "package"))
    code, _, err = report(capsys, ".")
    assert code == 2
    assert "inside the package" in err
