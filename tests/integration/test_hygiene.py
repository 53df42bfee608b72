"""On the demo: the same figures twice, private data that stays at home, files for other tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from tests.integration.conftest import ROOT, build_of, edgetune, report_of

pytestmark = pytest.mark.line

DATA = ROOT / "recipes" / "data" / "demo" / "home.evaluation.jsonl"


def test_two_validations_give_the_same_figures_to_the_last_digit(
    demo: Path, tmp_path: Path
) -> None:
    reports = []
    for name in ("a.json", "b.json"):
        done = edgetune("validate", demo / "demo", "-o", tmp_path / name, "--lm-eval", tmp_path)
        assert done.returncode in (0, 5), done.stderr
        reports.append(json.loads((tmp_path / name).read_text(encoding="utf-8")))
    one, two = reports
    assert one["environment"]["threads"] == two["environment"]["threads"] == 2
    for key in ("fidelity", "task_metrics", "tokenizer", "examples", "sampling", "inputs"):
        assert json.dumps(one[key]) == json.dumps(two[key]), key
    assert one["tokenizer"]["mismatches"] == 0
    # Both runs left their files, of both models; every sample's own figures agree as well.
    schema = json.loads((ROOT / "tests" / "goldens" / "lm_eval.schema.json").read_text())
    for model in ("demo__trained", "demo__cpu-w8a16-rtn@generic-x86-64"):
        first, second = sorted((tmp_path / model).glob("samples_demo_*.jsonl"))
        assert first.read_bytes() == second.read_bytes()
        for line in first.read_text(encoding="utf-8").splitlines():
            jsonschema.validate(json.loads(line), schema["sample"])
        for file in (tmp_path / model).glob("results_*.json"):
            results = json.loads(file.read_text(encoding="utf-8"))
            jsonschema.validate({**results, "configs": {}}, schema["results"])
            side = "reference" if model.endswith("trained") else "candidate"
            metric = one["task_metrics"]["exact_match"]
            assert results["results"]["demo"]["exact_match,none"] == metric[side]


@pytest.mark.slow
def test_private_data_is_in_no_byte_of_the_package(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    known = json.loads((out / "demo" / "reports" / "generic-x86-64.json").read_text())
    flags = ("build", "demo", "-d", "generic-x86-64", "-o", out, "--self-test-data", "builtin")
    done = edgetune(*flags, "--json")
    assert done.returncode in (0, 5), done.stderr
    report = report_of(done)
    # Measured as before, on every item and over the whole vocabulary …
    assert report["fidelity"] == known["fidelity"]
    assert report["task_metrics"] == known["task_metrics"]
    assert report["evidence"]["whole_vocabulary"] is True
    # … and told nowhere.
    package = Path(build_of(done)["package"])
    turns = [
        turn["content"]
        for line in DATA.read_text(encoding="utf-8").splitlines()
        for turn in json.loads(line)["messages"]
    ]
    files = [path for path in package.rglob("*") if path.is_file()]
    assert any(path.parent.name == "reports" for path in files)
    for path in files:
        data = path.read_bytes()
        assert [turn for turn in turns if turn.encode() in data] == [], path
    lock = json.loads((package / "edgetune.lock").read_text(encoding="utf-8"))
    assert lock["data"]["evaluation"]
    assert json.loads(edgetune("inspect", package, "--json").stdout)["warnings"] == []
    # The same check finds the text in the package that carries it.
    items = (demo / "demo" / "self_test" / "items.jsonl").read_bytes()
    assert all(turn.encode() in items for turn in turns)
    alone = edgetune("validate", package, "--json")
    assert alone.returncode in (0, 5), alone.stderr
    carried = json.loads(alone.stdout)
    assert carried["task_metrics"] == {}
    assert carried["fidelity"]["items"] == 30
    assert carried["self_test"]["carries"]["evaluation_text"] is None
