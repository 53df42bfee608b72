"""`scheme: auto` on a fine-tune that 4 bits erase: kept for few bytes, verified, found done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import ELSEWHERE, build_of, edgetune, report_of


@pytest.mark.slow
def test_an_adapter_that_4_bits_erase_is_kept_for_few_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("build", "demo-erased", *ELSEWHERE, "-o", out)
    plain = edgetune(*flags, "--json")
    assert plain.returncode == 1, plain.stderr
    lost = report_of(plain)
    auto = edgetune(*flags, "--scheme", "auto", "--json")
    assert auto.returncode == 0, auto.stderr
    kept = report_of(auto)
    assert kept["variant"] == "cpu-auto"
    assert kept["fidelity"]["retention"]["low"] >= 0.95
    assert lost["fidelity"]["retention"]["value"] < 0
    # 12 % more where it was measured (docs/auto.md); another processor's products round otherwise,
    # and a try that is missed by a hair is followed by a larger one.
    assert kept["size"]["package_bytes"] < 1.2 * lost["size"]["package_bytes"]
    chosen = kept["allocation"]
    assert kept["size"]["graph_bytes"] == pytest.approx(
        chosen["predicted"]["graph_bytes"], rel=0.02
    )
    assert 1 <= len(chosen["tries"]) <= 5
    assert chosen["would_take"] is None
    names = [step["name"] for step in build_of(auto)["steps"]]
    assert names == ["merge", "reference", "sensitivity", "optimize", "package", "validate"]

    # What is done is found done, tries that were not taken too.
    again = edgetune(*flags, "--scheme", "auto", "--json")
    assert all(step["cached"] for step in build_of(again)["steps"]), again.stderr
    plan = edgetune(*flags, "--scheme", "auto", "--plan", "--json")
    states = {step["state"] for step in json.loads(plan.stdout)["plans"][0]["steps"]}
    assert states == {"done"}
