"""Private evaluation data: measured on, and in neither package nor report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError
from edgetune.files import dump_json, write_text
from edgetune.report.collect import find_reports
from edgetune.report.markdown import to_markdown
from edgetune.report.schema import load_report, parse_report
from edgetune.report.terminal import summary_lines
from edgetune.report.words import carried_note
from edgetune.runtime.describe import describe_package
from edgetune.validate import rounds
from edgetune.validate.privacy import LEFT_OUT, without_text
from edgetune.validate.validate import validate_step
from tests.report.sample import make, make_report
from tests.tiny_package import PROMPTS, VARIANT, copy_of, sign


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BLOCK_S", 0.005)
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    monkeypatch.setattr(rounds, "MOST_LAUNCHES", 1)
    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)


def _carries(text: dict[str, int] | None, source: str = "evaluation data") -> dict[str, Any]:
    own = {"source": source, "items": 30, "evaluation_text": text}
    return {"measured_on": "evaluation data", "items": 240, "carries": own}


def test_a_report_loses_the_text_and_keeps_the_figures() -> None:
    rows = [
        {"kind": kind, "given": "secret", "at": 1, "unit": "token", "from": 0, "expected": [1],
         "found": [2]}
        for kind in ("prompt", "encode")
    ]  # fmt: skip
    tokenizer = {"cases": 3, "mismatches": 2, "skipped": 0, "differences": rows}
    report = make(tokenizer=tokenizer)
    bare = without_text(report)
    assert bare["examples"] == [
        {"id": "7", "lost": True, "kl_mean": 0.5, "prompt": None, "expected": None,
         "reference": None, "package": None}
    ]  # fmt: skip
    kept, own = bare["tokenizer"]["differences"]
    assert (kept["given"], kept["expected"], kept["found"]) == (LEFT_OUT,) * 3
    # Strings of edgetune's own are nobody's data.
    assert own == report["tokenizer"]["differences"][1]
    assert bare["fidelity"] == report["fidelity"]
    parse_report(bare)
    assert "– | – | –" in to_markdown(bare)


def _private(package: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A package whose self-test is another one, and the reference with the private one."""
    tmp_path.mkdir(exist_ok=True)
    reference = Path(shutil.copytree(package.parent / "reference", tmp_path / "reference"))
    shutil.copytree(package / "self_test", reference / "self_test")
    changed = copy_of(package, tmp_path / "package")
    items = (changed / "self_test" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    blank = {"prompt_text": "", "answer": None, "reference_answer": None, "base_answer": None,
             "reference_exact": None, "base_exact": None}  # fmt: skip
    lines = [json.dumps({**json.loads(line), **blank}) for line in items]
    write_text(changed / "self_test" / "items.jsonl", "\n".join(lines) + "\n")
    facts = json.loads((changed / "self_test" / "self_test.json").read_text())
    own = {"source": "sampled and built-in text", "metrics": {}, "evaluation_text": None}
    write_text(changed / "self_test" / "self_test.json", dump_json({**facts, **own}))
    sign(changed)
    return changed, reference


def _validate(package: Path, out: Path, **changes: Any) -> dict[str, Any]:
    out.mkdir()
    device = {"name": "this-machine", "here": True, "threads": 1, "arch": "x86_64"}
    arguments = {
        "package": str(package), "device": device, "variant": VARIANT,
        "identifier": "tiny@this-machine", "reference": None, "checkpoint": None, "steps": [],
        "merge": None, "evidence": None, **changes,
    }  # fmt: skip
    validate_step(arguments, out, lambda _: None)
    return load_report(out / "report.json").model_dump(mode="json")


@pytest.mark.line
def test_private_items_are_measured_and_not_told(package: Path, tmp_path: Path) -> None:
    changed, reference = _private(package, tmp_path)
    known = _validate(package, tmp_path / "a", reference=str(reference))
    report = _validate(changed, tmp_path / "b", reference=str(reference), private_data=True)
    assert report["fidelity"] == known["fidelity"]
    assert report["task_metrics"] == known["task_metrics"]
    assert report["self_test"]["measured_on"] == "evaluation data"
    assert report["self_test"]["carries"]["source"] == "sampled and built-in text"
    told = (tmp_path / "b" / "report.json").read_text() + to_markdown(report)
    assert [text for text in PROMPTS if len(text) > 5 and text in told] == []
    # For files that the builder asks for they are there, outside of the package.
    assert PROMPTS[0] in (tmp_path / "b" / "answers.json").read_text()
    assert "carries none of them" in "\n".join(summary_lines(report))
    # The gate takes the report from the package, whose own self-test is another one.
    place = changed / "reports" / "this-machine.json"
    write_text(place, (tmp_path / "b" / "report.json").read_text())
    (found,) = find_reports([changed])
    assert found.report.inputs["self_test"] == known["inputs"]["self_test"]
    text = place.read_text().replace(report["inputs"]["shipped_self_test"], "0" * 64)
    write_text(place, text)
    with pytest.raises(InputRefusedError, match="not the digest of this package's self_test"):
        find_reports([changed])
    shutil.rmtree(place.parent)
    # The package alone is measured on what it carries.
    alone = _validate(changed, tmp_path / "c")
    assert alone["task_metrics"] == {}
    assert alone["self_test"]["measured_on"] == "sampled and built-in text"
    assert alone["sampling"]["text_seed"] == 0


def test_what_a_package_carries_is_told() -> None:
    carried = carried_note(make_report(self_test=_carries({"items": 240, "bytes": 139_865})))
    assert carried == (
        "the package carries 240 evaluation items (139.9 kB), which whoever has it can read; for "
        "private data build with --self-test-data builtin"
    )
    nothing = carried_note(make_report(self_test=_carries(None, "sampled and built-in text")))
    assert nothing is not None
    assert "measured on 240 items of the evaluation data; the package carries none" in nothing
    own = _carries(None, "sampled and built-in text")
    own["measured_on"] = "sampled and built-in text"
    assert carried_note(make_report(self_test=own)) is None
    assert carried_note(make_report()) is None


def test_inspect_warns_of_evaluation_items(package: Path, tmp_path: Path) -> None:
    changed = copy_of(package, tmp_path / "package")
    facts = json.loads((changed / "self_test" / "self_test.json").read_text())
    text = {"items": 6, "bytes": 2000}
    write_text(
        changed / "self_test" / "self_test.json", dump_json({**facts, "evaluation_text": text})
    )
    sign(changed)
    (warning,) = describe_package(changed)["warnings"]
    assert "carries 6 evaluation items (2000 bytes" in warning
    private, _ = _private(package, tmp_path / "private")
    assert describe_package(private)["warnings"] == []
