"""The straight line with its steps replaced by recorders: the order is the specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune import build
from edgetune.artifact import StepResult
from edgetune.errors import StepFailedError
from edgetune.line import optimize_step
from edgetune.planning import plan_builds
from edgetune.recipe import find_recipe, load_recipe
from edgetune.step import Step, path_of

pytestmark = pytest.mark.line


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that ran; publishing a report needs none."""
    names: list[str] = []

    def record(step: Step, store: Path, **_: Any) -> StepResult:
        names.append(step.name)
        chosen = {"chosen": "original"} if step.name == "reference" else {}
        return StepResult(
            name=step.name,
            path=str(path_of(store, step)),
            seconds=0.0,
            peak_rss_mb=None,
            cached=False,
            facts={"onto": step.inputs.get("onto"), **chosen},
        )

    def publish(source: Path, folder: Path, **_: Any) -> tuple[Path, str]:
        names.append("report")
        return folder / "x.json", "pass"

    monkeypatch.setattr(build, "run_step", record)
    monkeypatch.setattr(build, "publish_report", publish)
    return names


def builds(
    out: Path, *devices: str, until: str = "validate", recipe: str = "demo", **changes: Any
) -> list[build.Build]:
    plans = plan_builds(load_recipe(find_recipe(recipe)).model_copy(update=changes), devices, out)
    return build.run_builds(plans, out, until)


@pytest.mark.parametrize(
    ("until", "steps"),
    [
        ("merge", ["merge", "merge"]),
        ("optimize", ["merge", "merge", "reference", "optimize"]),
        ("package", ["merge", "merge", "reference", "optimize", "package"]),
    ],
)
def test_of_two_merges_the_reference_chooses_before_the_graph_is_made(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch, until: str, steps: list[str]
) -> None:
    given: list[Any] = []

    def graph(plan: Any, store: Path) -> Step:
        given.append(plan.onto)
        return optimize_step(plan, store)

    monkeypatch.setattr(build, "optimize_step", graph)
    out = tmp_path / "out"
    (only,) = builds(out, "generic-x86-64", until=until, recipe="demo-qlora", onto="auto")
    assert ran == steps
    assert given == (["original"] if "optimize" in steps else [])
    assert [step.facts["onto"] for step in only.steps[:2]] == ["dequantized", "original"]


def test_a_base_that_never_was_4_bit_has_one_merge(tmp_path: Path, ran: list[str]) -> None:
    builds(tmp_path / "out", "generic-x86-64", until="optimize", onto="auto")
    assert ran == ["merge", "optimize"]


def test_one_device_runs_the_line_once(tmp_path: Path, ran: list[str]) -> None:
    (only,) = builds(tmp_path / "out", "generic-x86-64")
    assert ran == ["merge", "reference", "optimize", "package", "validate", "report"]
    assert (only.identifier, only.verdict) == ("demo@generic-x86-64", "pass")
    assert only.package == tmp_path / "out" / "demo"


def test_devices_share_all_but_their_validation(tmp_path: Path, ran: list[str]) -> None:
    both = builds(tmp_path / "out", "generic-x86-64", "raspberry-pi-5")
    expected = ["merge", "reference", "optimize", "package"]
    assert ran == [*expected, "validate", "report", "validate", "report"]
    assert [b.identifier for b in both] == ["demo@generic-x86-64", "demo@raspberry-pi-5"]


@pytest.mark.parametrize(
    ("until", "steps"),
    [
        ("merge", ["merge"]),
        ("reference", ["merge", "reference"]),
        ("optimize", ["merge", "optimize"]),
        ("package", ["merge", "reference", "optimize", "package"]),
    ],
)
def test_until_runs_only_what_the_step_depends_on(
    tmp_path: Path, ran: list[str], until: str, steps: list[str]
) -> None:
    (only,) = builds(tmp_path / "out", "generic-x86-64", until=until)
    assert ran == steps
    assert only.verdict is only.report is None
    json.dumps(only.as_json())


def test_a_failed_step_ends_the_line(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: Step, store: Path, **_: Any) -> StepResult:
        raise StepFailedError("it broke", "mend it")

    monkeypatch.setattr(build, "run_step", fail)
    with pytest.raises(StepFailedError, match="it broke"):
        builds(tmp_path / "out", "generic-x86-64")


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [(["pass", "pass"], 0), (["pass", "inconclusive"], 5), (["inconclusive", "fail"], 1)],
)
def test_the_gravest_verdict_is_the_exit_code(verdicts: list[str], code: int) -> None:
    assert build.exit_code([build.Build(v, (), v) for v in verdicts]) == code
