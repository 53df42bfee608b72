"""`scheme: auto`: what is refused before work starts, how tries are judged, the steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.auto import judge_try, read_choice, try_choices
from edgetune.errors import PlanError, UsageError
from edgetune.files import dump_json
from edgetune.line import optimize_step, sensitivity_step
from edgetune.optimize.allocation import Allocation, Option
from edgetune.optimize.allocation_tries import Wanted
from edgetune.plan import Plan
from edgetune.planning import describe_steps, plan_builds
from edgetune.recipe import find_recipe, load_recipe
from edgetune.step import path_of

pytestmark = pytest.mark.line

ONE = Allocation({"m": Option("w4-g32", 100, 0.01)})


def plan(out: Path, name: str = "demo", **changes: Any) -> Plan:
    recipe = load_recipe(find_recipe(name))
    values = {**recipe.model_dump(), "scheme": "auto", **changes}
    return plan_builds(type(recipe).model_validate(values), ["generic-x86-64"], out)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 64}, "auto chooses each module's group size, so it takes none"),
        (
            {"tolerances": {"kl_mean": None, "retention": None}},
            "auto chooses by tolerances, and neither kl_mean nor retention can be asked",
        ),
        ({"budgets": {"package_bytes": 1_000_000}}, "the smallest possible package of this model"),
        ({"scheme": "auto-1"}, "auto-1: the smallest possible graph of this model takes"),
        ({"scheme": "auto-x"}, "no scheme is called 'auto-x'"),
        ({"protect": {"query": "w8"}}, "no module of .* is called 'query'"),
        (
            {"protect": {"o_proj": "w4-g16"}},
            r"w4-g16 is no width that auto chooses from \(model.layers.0.self_attn.o_proj and 3",
        ),
        ({"protect": {"embed_tokens": "w4"}}, r"w4-g32 is .* from \(model.embed_tokens\)"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message) as raised:
        plan(tmp_path / "out", **changes)
    assert raised.value.exit_code == 2


def test_too_few_calibration_items_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "few.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 3, encoding="utf-8")
    with pytest.raises(
        PlanError, match="calibration data too short: 3 items, auto needs at least 8"
    ):
        plan(tmp_path / "out", data={"calibration": str(data)})


def test_a_full_fine_tune_without_its_base_needs_a_limit_on_kl(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="neither kl_mean nor retention can be asked"):
        plan(tmp_path / "out", "demo-full", base_before=None, tolerances={"kl_mean": None})


def test_the_sensitivities_serve_every_choice(tmp_path: Path) -> None:
    store = tmp_path / "out" / "steps"
    steps = {
        sensitivity_step(plan(tmp_path / "out", **changes), store).key
        for changes in (
            {},
            {"scheme": "auto-9"},
            {"tolerances": {"kl_mean": 0.001}},
            {"protect": {"o_proj": "w8"}},
        )
    }
    assert len(steps) == 1
    other = plan(tmp_path / "out", data={"calibration": None})
    assert sensitivity_step(other, store).key not in steps


def test_a_plan_with_an_open_choice_says_so(tmp_path: Path) -> None:
    rows = describe_steps([plan(tmp_path / "out")], tmp_path / "out")
    assert [row[1] for row in rows[:3]] == ["merge", "reference", "sensitivity"]
    assert {row[3] for row in rows[3:]} == {
        "the sensitivities choose the widths that it is made of"
    }


def test_the_widths_that_were_chosen_are_the_plans(tmp_path: Path) -> None:
    from dataclasses import replace

    auto = plan(tmp_path / "out", protect={"lm_head": "w8"})
    assert auto.variant == "cpu-auto-protected"
    assert auto.widths.of("lm_head").name == "w8-g32"
    chosen = replace(auto, chosen={"lm_head": "w4-g32", "model.layers.0.mlp.down_proj": "fp32"})
    assert chosen.widths.of("lm_head").name == "w4-g32"
    assert chosen.widths.of("model.layers.0.mlp.down_proj").name == "fp32"
    store = tmp_path / "steps"
    assert optimize_step(chosen, store).key != optimize_step(auto, store).key


def check(name: str, value: float, bound: float, limit: float) -> dict[str, Any]:
    low, high = sorted((value, bound))
    return {"name": name, "value": value, "low": low, "high": high, "limit": limit}


GOOD = check("kl_mean", 0.02, 0.03, 0.05)


@pytest.mark.parametrize(
    ("checks", "missed", "kl"),
    [
        ([GOOD], (), 0.03),
        ([check("kl_mean", 0.04, 0.06, 0.05)], ("kl_mean",), 0.06),
        # (1 − 0.93) of (1 − 0.95), in units of 0.05
        ([check("retention", 0.96, 0.93, 0.95)], ("retention",), 0.07),
        ([check("emulated_kl_mean", 0.04, 0.06, 0.05)], ("emulated_kl_mean",), 0.06),
        ([GOOD, check("exact_match_drop", 0.03, 0.05, 0.02)], ("exact_match_drop",), 0.03),
        ([GOOD, check("exact_match_drop", 0.0, 0.05, 0.02)], (), 0.03),
        ([GOOD, check("time_to_answer_ratio", 2.0, 2.1, 1.0)], (), 0.03),
    ],
)
def test_a_try_is_judged_by_fidelity(
    checks: list[dict[str, Any]], missed: tuple[str, ...], kl: float
) -> None:
    report = {"checks": checks, "fidelity": {"kl_mean": {"high": 0.5}}}
    made = judge_try(ONE, [report], Wanted(0.05))
    assert (made.missed, made.met) == (missed, not missed)
    assert made.kl == pytest.approx(kl)


def test_a_check_that_was_not_measured_is_no_miss() -> None:
    none = {"name": "retention", "value": None, "low": None, "high": None, "limit": 0.95}
    report = {"checks": [none], "fidelity": {"kl_mean": {"high": 0.5}}}
    assert judge_try(ONE, [report], Wanted(None)).kl == 0.5


def stored(plan: Plan, out: Path) -> Path:
    """A store with the sensitivities of one module and a self-test of 1000 bytes."""
    from edgetune.line import reference_step

    store = out / "steps"
    folder = path_of(store, sensitivity_step(plan, store))
    folder.mkdir(parents=True)
    options = [
        {"width": "w4-g32", "bytes": 100, "kl": 0.2},
        {"width": "fp32", "bytes": 800, "kl": 0.0},
    ]
    value = {
        "modules": [{"name": "lm_head", "options": options}],
        "share_beside_others": 1.0,
        "joint": [],
        "fixed_bytes": 50,
        "parameters": 200,
    }
    (folder / "sensitivity.json").write_text(dump_json(value), encoding="utf-8")
    self_test = path_of(store, reference_step(plan, store)) / "self_test"
    self_test.mkdir(parents=True)
    (self_test / "items.jsonl").write_bytes(b"x" * 1000)
    return store


def test_the_stricter_of_two_tolerances_is_what_is_wanted(tmp_path: Path) -> None:
    auto = plan(tmp_path / "out")
    store = stored(auto, tmp_path / "out")
    assert read_choice(auto, store, 0.2).wanted == Wanted(pytest.approx(0.01), None, 0.02)
    assert read_choice(auto, store, None).wanted == Wanted(0.05, None, 0.02)


def test_a_budget_without_room_is_refused_with_what_is_taken(tmp_path: Path) -> None:
    auto = plan(tmp_path / "out", "demo", scheme="auto-8")
    store = stored(auto, tmp_path / "out")
    assert read_choice(auto, store, 1.0).wanted == Wanted(None, 200)
    tight = auto.recipe.budgets.model_copy(update={"package_bytes": 1000})
    from dataclasses import replace

    poor = replace(auto, recipe=auto.recipe.model_copy(update={"budgets": tight}))
    with pytest.raises(UsageError, match="the smallest possible graph takes 150 bytes"):
        read_choice(poor, store, 1.0)


def test_an_unknown_verification_ends_the_looking_up(tmp_path: Path) -> None:
    auto = plan(tmp_path / "out")
    choice = read_choice(auto, stored(auto, tmp_path / "out"), 1.0)
    assert try_choices(choice, lambda _: None) is None
    report = {"checks": [check("kl_mean", 0.0, 0.0, 0.05)], "fidelity": {"kl_mean": {"high": 0.0}}}
    tried = try_choices(choice, lambda _: [report])
    assert tried is not None
    assert tried.best.allocation.widths == {"lm_head": "fp32"}
    json.dumps(tried.best.allocation.widths)
