"""The rows of a search: which there are, the frontier, the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune import search
from edgetune.build import Build
from edgetune.cli.search import _COLUMNS
from edgetune.console import print_table
from edgetune.errors import PlanError, StepFailedError
from edgetune.optimize.schemes import SCHEMES
from edgetune.recipe import find_recipe, load_recipe
from tests.report.sample import make

pytestmark = pytest.mark.line


def row(
    scheme: str, size: int | None, kl: float | None, verdict: str | None = "pass"
) -> dict[str, Any]:
    return {
        "scheme": scheme,
        "bytes": size,
        "kl_mean": None if kl is None else {"value": kl},
        "verdict": verdict,
    }


def test_a_row_is_on_the_frontier_unless_another_is_smaller_and_nearer() -> None:
    rows = [
        row("a", 30, 0.1),
        row("b", 10, 0.5),
        row("c", 30, 0.2),
        row("d", 40, 0.1),
        row("e", None, None),
    ]
    marked = search.mark_frontier(rows)
    assert [r["scheme"] for r in marked] == ["b", "a", "c", "d", "e"]
    assert {r["scheme"] for r in marked if r["frontier"]} == {"a", "b"}


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [(["fail", "pass"], 0), (["fail", "inconclusive"], 1), (["inconclusive"], 5),
     (["not built", "fail"], 6), ([None, None], 0)],
)  # fmt: skip
def test_one_row_that_passes_is_enough(verdicts: list[str | None], code: int) -> None:
    assert search.exit_code([row("a", 1, 1.0, verdict) for verdict in verdicts]) == code


def test_every_scheme_and_a_few_sizes_are_rows(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("demo"))
    plans = search.plan_rows(recipe, [], "generic-x86-64", tmp_path / "out")
    schemes = [plan.recipe.scheme for plan in plans]
    # No kernels for the one, no NF4 weights for the other.
    offered = [name for name in SCHEMES if name not in ("fp16", "nf4a16")]
    assert schemes[: len(offered) + 1] == [*offered, "auto"]
    sizes = [float(name.removeprefix("auto-")) for name in schemes[len(offered) + 1 :]]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    assert len({plan.recipe.name for plan in plans}) == len(plans)


def test_every_problem_of_every_row_is_told_at_once(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("demo"))
    with pytest.raises(PlanError) as raised:
        search.plan_rows(recipe, ["w8", "auto-1", "fp32"], "generic-x86-64", tmp_path / "out")
    assert len(raised.value.problems) == 2


def test_a_row_that_cannot_be_built_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = make()

    def build(plans: Any, out: Path) -> list[Build]:
        if plans[0].recipe.scheme == "fp32":
            raise StepFailedError("it broke")
        return [Build("x", (), report["verdict"], out, out / "x.json", "v")]

    monkeypatch.setattr(search, "run_builds", build)
    monkeypatch.setattr(search, "load_report", lambda _: report)
    recipe = load_recipe(find_recipe("demo"))
    plans = search.plan_rows(recipe, ["fp32", "w8a16-rtn"], "generic-x86-64", tmp_path / "out")
    good, bad = search.run_rows(plans, tmp_path / "out")
    assert (bad["scheme"], bad["verdict"], bad["reason"]) == ("fp32", "not built", "it broke")
    assert "fp32 was not built: it broke" in capsys.readouterr().err
    assert (good["scheme"], good["label"], good["frontier"]) == ("w8a16-rtn", "measured", True)
    assert good["kl_mean"] == report["fidelity"]["kl_mean"]
    assert good["bytes"] == report["size"]["package_bytes"]


def test_no_cell_of_the_table_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [f"w4a16-{'x' * 40}{n}" for n in range(10)]
    print_table("", _COLUMNS, [cells], figures=True, whole=True)
    line = next(line for line in capsys.readouterr().out.splitlines() if cells[0] in line)
    assert line.split() == cells
