"""The one function that judges: each check's pass beside its fail, and nothing stored believed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import InputRefusedError
from edgetune.report.questions import Question, figure_of
from edgetune.report.schema import Interval, parse_report
from edgetune.report.verdict import decide, items_needed, judge
from edgetune.statistics import paired_proportions
from tests.report.sample import interval, make, make_report


def _verdict_of(name: str, **changes: Any) -> str:
    check = judge(make_report(**changes)).of(name)
    assert check is not None
    return check.verdict


def _check(name: str, limit: float, required: bool = False) -> dict[str, Any]:
    return {"name": name, "limit": limit, "required": required, "reason": "no reason"}


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.03, 0.02, 0.04, "pass"),
        (0.05, 0.05, 0.05, "pass"),
        (0.03, 0.02, 0.06, "inconclusive"),
        (0.06, 0.04, 0.08, "inconclusive"),
        (0.07, 0.06, 0.08, "fail"),
        (0.07, 0.07, 0.07, "fail"),
        # Edited: a figure outside its own bounds is believed where it is bad only.
        (9.0, 0.02, 0.04, "fail"),
        (0.01, 0.06, 0.08, "fail"),
        (0.01, 0.02, 0.06, "inconclusive"),
    ],
)
def test_a_figure_against_an_upper_limit(
    value: float, low: float, high: float, expected: str
) -> None:
    figure = Interval(value=value, low=low, high=high)
    assert decide(figure, 0.05, "above") == expected
    mirrored = Interval(value=-value, low=-high, high=-low)
    assert decide(mirrored, -0.05, "below") == expected


_numbers = st.floats(-10, 10)


@given(_numbers, _numbers, _numbers, _numbers, st.sampled_from(["above", "below"]))
def test_no_figure_passes_whose_value_or_bound_violates(
    value: float, one: float, other: float, limit: float, bad: Any
) -> None:
    figure = Interval(value=value, low=min(one, other), high=max(one, other))
    found = decide(figure, limit, bad)
    numbers = (value, one, other)
    worst = max(numbers) if bad == "above" else min(numbers)
    within = worst <= limit if bad == "above" else worst >= limit
    assert (found == "pass") == within


@given(_numbers, st.floats(0, 5), _numbers)
def test_a_figure_inside_its_bounds_fails_only_when_they_all_violate(
    value: float, width: float, limit: float
) -> None:
    figure = Interval(value=value, low=value - width, high=value + width)
    assert (decide(figure, limit, "above") == "fail") == (value - width > limit)


def test_a_sound_report_passes() -> None:
    judgement = judge(make_report())
    assert judgement.verdict == "pass"
    assert {check.verdict for check in judgement.checks} == {"pass"}


@pytest.mark.parametrize(
    ("name", "bad", "unclear"),
    [
        ("retention", {"fidelity__retention": interval(0.71, 0.05)},
         {"fidelity__retention": interval(0.955, 0.01)}),
        ("kl_mean", {"fidelity__kl_mean": interval(0.2, 0.05)},
         {"fidelity__kl_mean": interval(0.045, 0.01)}),
        ("exact_match_drop",
         {"task_metrics__exact_match__difference": -0.1, "task_metrics__exact_match__low": -0.15,
          "task_metrics__exact_match__high": -0.05},
         {"task_metrics__exact_match__low": -0.03}),
        ("time_to_answer_ratio", {"latency__ratio": interval(1.3, 0.1)},
         {"latency__ratio": interval(0.97, 0.1)}),
    ],
)  # fmt: skip
def test_each_sampled_check_can_fail_and_be_unclear(
    name: str, bad: dict[str, Any], unclear: dict[str, Any]
) -> None:
    assert _verdict_of(name) == "pass"
    assert _verdict_of(name, **bad) == "fail"
    assert judge(make_report(**bad)).verdict == "fail"
    assert _verdict_of(name, **unclear) == "inconclusive"
    assert judge(make_report(**unclear)).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_parity", {"tokenizer__mismatches": 1}),
        ("finite_outputs", {"fidelity__non_finite_positions": 1}),
    ],
)
def test_each_count_can_fail(name: str, changes: dict[str, Any]) -> None:
    assert _verdict_of(name) == "pass"
    assert _verdict_of(name, **changes) == "fail"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("ttft_ms", 60.0, 40.0),
        ("decode_tokens_per_s", 300.0, 400.0),
        ("peak_rss_mb", 301.0, 299.0),
        ("package_bytes", 6_000_000.0, 5_999_999.0),
    ],
)
def test_each_budget_can_pass_and_fail(name: str, good: float, bad: float) -> None:
    assert _verdict_of(name, checks=[_check(name, good)]) == "pass"
    assert _verdict_of(name, checks=[_check(name, bad)]) == "fail"


def test_a_budget_inside_the_bounds_of_a_time_is_unclear() -> None:
    assert _verdict_of("ttft_ms", checks=[_check("ttft_ms", 50.5)]) == "inconclusive"


def test_what_was_not_measured_counts_only_where_it_is_required() -> None:
    nothing = {"latency__candidate": None, "latency__reference": None, "latency__ratio": None}
    assert _verdict_of("time_to_answer_ratio", **nothing) == "not measured"
    assert judge(make_report(**nothing)).verdict == "pass"
    checks = [_check("kl_mean", 0.05), _check("ttft_ms", 50.0, required=True)]
    assert judge(make_report(checks=checks, **nothing)).verdict == "inconclusive"


def test_nothing_measured_is_never_passed() -> None:
    assert judge(make_report(checks=[])).verdict == "inconclusive"
    nothing = {"latency__ratio": None}
    checks = [_check("time_to_answer_ratio", 1.0)]
    assert judge(make_report(checks=checks, **nothing)).verdict == "inconclusive"


def test_a_metric_that_is_absent_is_not_measured() -> None:
    assert _verdict_of("exact_match_drop", task_metrics={}) == "not measured"


def test_a_failure_weighs_more_than_what_is_unclear() -> None:
    changes = {"fidelity__kl_mean": interval(0.045, 0.01), "tokenizer__mismatches": 2}
    assert judge(make_report(**changes)).verdict == "fail"


def test_few_items_never_pass_but_may_fail() -> None:
    assert _verdict_of("kl_mean", fidelity__items=4) == "inconclusive"
    assert _verdict_of("kl_mean", fidelity__items=5) == "pass"
    bad = {"fidelity__items": 2, "fidelity__kl_mean": interval(0.9)}
    assert _verdict_of("kl_mean", **bad) == "fail"
    assert _verdict_of("exact_match_drop", task_metrics__exact_match__n=4) == "inconclusive"


def test_stored_verdicts_and_values_of_checks_are_not_believed() -> None:
    value = make(fidelity__kl_mean=interval(0.2, 0.05))
    assert value["verdict"] == "fail"
    value["verdict"] = "pass"
    for check in value["checks"]:
        check.update(verdict="pass", value=0.0, low=0.0, high=0.0)
    assert judge(parse_report(value)).verdict == "fail"
    value["fidelity"]["kl_mean"] = interval(0.2)
    assert judge(parse_report(value)).verdict == "fail"


def test_a_check_that_is_not_known_cannot_pass() -> None:
    value = make()
    value["checks"][0]["name"] = "vibes"
    with pytest.raises(InputRefusedError, match="a check 'vibes' that this version"):
        judge(parse_report(value))


def test_a_drop_is_what_the_package_lost() -> None:
    figure = figure_of(make_report(), "exact_match_drop")
    assert figure is not None
    assert (figure.value, figure.low, figure.high) == (0.004, -0.007, 0.018)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "margin"),
    [(0, 0, 60, 0.02), (0, 0, 20, 0.01), (1, 0, 150, 0.02), (3, 2, 200, 0.02), (4, 0, 100, 0.05),
     (6, 6, 240, 0.01), (10, 9, 240, 0.02)],
)  # fmt: skip
def test_the_items_said_to_be_needed_decide_and_few_fewer_do_not(
    lost: int, gained: int, n: int, margin: float
) -> None:
    def drop(n: float, share: float) -> Interval:
        found = paired_proportions(round(lost * share), round(gained * share), round(n))
        return Interval(value=-found.value, low=-found.high, high=-found.low)

    assert decide(drop(n, 1), margin, "above") == "inconclusive"
    needed = items_needed(drop(n, 1), margin, n, lost + gained)
    assert needed is not None
    assert decide(drop(1.2 * needed, 1.2 * needed / n), margin, "above") == "pass"
    if needed > 2 * n:
        assert decide(drop(0.5 * needed, 0.5 * needed / n), margin, "above") == "inconclusive"


def test_a_mean_s_bound_shrinks_with_the_root_of_the_items() -> None:
    figure = Interval(value=0.04, low=0.02, high=0.06)
    assert items_needed(figure, 0.05, 100, None) == 400
    # On its limit no number of items decides.
    assert items_needed(figure, 0.04, 100, None) is None
    assert items_needed(figure, 0.040001, 100, None) is None


def test_what_is_unclear_says_how_many_items_would_decide() -> None:
    value = {"fidelity__kl_mean": interval(0.045, 0.01)}
    check = judge(make_report(**value)).of("kl_mean")
    assert check is not None
    assert check.reason == (
        "the limit lies between the bounds: about 960 items would decide, 240 were measured"
    )
    check = judge(make_report(fidelity__kl_mean=interval(0.05, 0.01))).of("kl_mean")
    assert check is not None
    assert (check.reason or "").endswith(
        "240 items were measured, and the figure lies on the limit"
    )


def test_questions_from_elsewhere_are_judged_by_the_same_rule() -> None:
    def verdict(**question: Any) -> str:
        asked = Question("kl_mean_regression", limit=0.01, **question)
        return judge(make_report(), [asked]).verdict

    def figure(value: float, width: float) -> Interval:
        return Interval(value=value, low=value - width, high=value + width)

    assert verdict(figure=figure(0.0, 0.001)) == "pass"
    assert verdict(figure=figure(0.05, 0.001)) == "fail"
    assert verdict(figure=figure(0.0, 0.05)) == "inconclusive"
    assert verdict(figure=figure(0.0, 0.0), samples=4) == "inconclusive"
    assert verdict(figure=None, required=True) == "inconclusive"
    assert verdict(figure=None) == "pass"
