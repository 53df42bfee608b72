"""`scheme: auto` on the demo: built, verified, found done; an erased adapter is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import ELSEWHERE, build_of, edgetune, report_of


@pytest.mark.line
@pytest.mark.slow
def test_auto_is_smaller_than_8_bits_passes_and_is_found_done(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    eight = json.loads((out / "demo/reports/generic-x86-64.json").read_text(encoding="utf-8"))
    done = edgetune("build", "demo", *ELSEWHERE, "--scheme", "auto", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    chosen = report["allocation"]
    assert report["variant"] == "cpu-auto"
    assert report["size"]["graph_bytes"] < eight["size"]["graph_bytes"]
    assert report["size"]["graph_bytes"] == pytest.approx(
        chosen["predicted"]["graph_bytes"], rel=0.02
    )
    assert 1 <= len(chosen["tries"]) <= 3
    assert chosen["would_take"] is None
    names = [step["name"] for step in build_of(done)["steps"]]
    assert names == ["merge", "reference", "sensitivity", "optimize", "package", "validate"]
    # What is done is found done, tries that were not taken too.
    again = edgetune("build", "demo", *ELSEWHERE, "--scheme", "auto", "-o", out, "--json")
    assert all(step["cached"] for step in build_of(again)["steps"]), again.stderr
    plan = edgetune("build", "demo", *ELSEWHERE, "--scheme", "auto", "-o", out, "--plan", "--json")
    states = {step["state"] for step in json.loads(plan.stdout)["plans"][0]["steps"]}
    assert states == {"done"}


@pytest.mark.slow
def test_an_adapter_that_4_bits_erase_is_kept_for_less_than_15_per_cent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = edgetune("build", "demo-erased", *ELSEWHERE, "-o", out, "--json")
    assert plain.returncode == 1, plain.stderr
    lost = report_of(plain)
    auto = edgetune("build", "demo-erased", *ELSEWHERE, "--scheme", "auto", "-o", out, "--json")
    assert auto.returncode == 0, auto.stderr
    kept = report_of(auto)
    assert kept["fidelity"]["retention"]["low"] >= 0.95
    assert lost["fidelity"]["retention"]["value"] < 0
    assert kept["size"]["package_bytes"] < 1.15 * lost["size"]["package_bytes"]
