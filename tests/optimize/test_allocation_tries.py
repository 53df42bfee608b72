"""From a prediction to the next try, and what a miss would take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgetune.optimize.allocation import Allocation, Option
from edgetune.optimize.allocation_tries import (
    MOST_TRIES,
    Joint,
    Sensitivities,
    Try,
    Wanted,
    best_try,
    next_choice,
    read_sensitivities,
    what_it_would_take,
)

FOUND = Sensitivities(
    {
        f"m{number:02}": (
            Option("w4-g32", 100, 0.02),
            Option("w8-g32", 200, 0.0002),
            Option("fp32", 800, 0.0),
        )
        for number in range(20)
    },
    fixed_bytes=1000,
    parameters=4000,
    joint=(),
)


def verified(allocation: Allocation, ratio: float, limit: float = 0.1) -> Try:
    """A build whose KL is so many times what was predicted."""
    kl = ratio * allocation.kl
    return Try(allocation, kl, kl <= limit, () if kl <= limit else ("kl_mean",))


def run(ratio: float, wanted: Wanted, found: Sensitivities = FOUND) -> list[Try]:
    tries: list[Try] = []
    while choice := next_choice(found, wanted, tries):
        tries.append(verified(choice, ratio, wanted.kl or 1.0))
    return tries


def test_the_first_is_the_smallest_that_is_expected_to_do() -> None:
    choice = next_choice(FOUND, Wanted(0.1), [])
    assert choice is not None
    assert choice.kl <= 0.1
    looser = next_choice(FOUND, Wanted(0.3), [])
    assert looser is not None
    assert looser.bytes < choice.bytes


@pytest.mark.parametrize("ratio", [0.3, 1.0, 1.6, 3.0])
def test_tries_come_to_one_that_does_and_stay_few(ratio: float) -> None:
    tries = run(ratio, Wanted(0.1))
    assert 1 <= len(tries) <= MOST_TRIES
    best = best_try(tries)
    assert best.met
    needed = next(
        a
        for a in sorted((t.allocation for t in tries), key=lambda a: a.bytes)
        if ratio * a.kl <= 0.1
    )
    assert best.allocation.bytes == needed.bytes


def test_a_prediction_that_was_too_gloomy_is_followed_by_a_smaller_one() -> None:
    tries = run(0.2, Wanted(0.1))
    assert tries[1].allocation.bytes < tries[0].allocation.bytes


def test_a_miss_of_the_tasks_metric_alone_gets_more_bits() -> None:
    first = next_choice(FOUND, Wanted(0.1), [])
    assert first is not None
    second = next_choice(FOUND, Wanted(0.1), [Try(first, 0.2, False, ("exact_match_drop",))])
    assert second is not None
    assert second.kl <= first.kl / 3


def test_where_answers_count_the_first_is_careful_and_the_next_is_not_reckless() -> None:
    wanted = Wanted(0.3, None, lost_answers=1.0)
    first = next_choice(FOUND, wanted, [])
    assert first is not None
    assert first.kl <= 0.05
    second = next_choice(FOUND, wanted, [Try(first, 0.001, True)])
    assert second is not None
    assert first.kl < second.kl <= 4 * first.kl


def test_between_a_miss_and_what_passed_is_looked_half_way() -> None:
    wanted = Wanted(0.4, None, lost_answers=8.0)
    tries: list[Try] = []
    for met in (False, True, True, False):
        choice = next_choice(FOUND, wanted, tries)
        assert choice is not None
        tries.append(Try(choice, 0.1, met, () if met else ("exact_match_drop",)))
    sizes = [t.allocation.bytes for t in tries]
    assert sizes[0] < sizes[3] < sizes[2] < sizes[1]
    assert best_try(tries) is tries[2]


def test_within_a_budget_that_is_too_small_the_best_of_it_is_the_nearest_miss() -> None:
    wanted = Wanted(0.001, graph_bytes=1000 + 2500)
    tries = run(1.0, wanted)
    assert len(tries) == 1
    assert tries[0].allocation.bytes == 2500
    assert not best_try(tries).met
    words = what_it_would_take(FOUND, wanted, tries)
    assert "misses kl_mean" in words
    assert "more than budgets.package_bytes leaves room for" in words


def test_as_many_misses_as_are_built_end_it_with_what_would_be_needed() -> None:
    first = next_choice(FOUND, Wanted(0.1), [])
    assert first is not None
    tries = [Try(first, 0.5, False, ("exact_match_drop",))] * MOST_TRIES
    assert next_choice(FOUND, Wanted(0.1), tries) is None
    words = what_it_would_take(FOUND, Wanted(0.1), tries)
    assert "misses exact_match_drop: a graph of about" in words
    assert words.endswith(f"{MOST_TRIES} were built, which is the limit")


def test_what_nothing_on_offer_reaches() -> None:
    options = {"m": (Option("w4-g32", 100, 0.2), Option("w8-g32", 200, 0.1))}
    found = replace(FOUND, options=options)
    assert next_choice(found, Wanted(0.01), []) is None
    made = Try(Allocation({"m": options["m"][1]}), 0.1, False, ("kl_mean",))
    assert "no width on offer is expected to reach it" in what_it_would_take(
        found, Wanted(0.01), [made]
    )


def test_a_size_alone_is_built_once() -> None:
    wanted = Wanted(None, graph_bytes=1000 + 2250)
    tries = run(1.0, wanted)
    assert [t.allocation.bytes for t in tries] == [2200]


def test_allocations_measured_as_a_whole_correct_the_sum() -> None:
    found = replace(FOUND, joint=(Joint(0.4, 0.8), Joint(0.1, 0.1)))
    assert found.together(0.4) == pytest.approx(0.8)
    assert found.together(0.2) == pytest.approx(0.2 * 2**0.5)
    assert found.together(0.01) == pytest.approx(0.01)
    assert found.together(4.0) == pytest.approx(8.0)
    assert found.together(found.added_within(0.5)) == pytest.approx(0.5)


def test_a_protected_module_has_no_choice() -> None:
    rows = [{"width": w, "bytes": b, "kl": 0.1} for w, b in (("w4-g32", 1), ("w8-g32", 2))]
    value = {
        "modules": [{"name": "a", "options": rows}, {"name": "b", "options": rows}],
        "share_beside_others": 1.0,
        "joint": [{"added": 0.2, "kl": 0.1}],
        "fixed_bytes": 5,
        "parameters": 7,
    }
    found = read_sensitivities(value, {"b": "w8-g32"})
    assert [o.width for o in found.options["a"]] == ["w4-g32", "w8-g32"]
    assert [o.width for o in found.options["b"]] == ["w8-g32"]
    assert found.joint == (Joint(0.2, 0.1),)


def test_a_module_in_a_layer_counts_as_beside_others_and_is_told_alone() -> None:
    rows = [{"width": "w4-g32", "bytes": 1, "kl": 0.3}]
    names = ("model.layers.0.mlp.up_proj", "lm_head")
    value = {
        "modules": [{"name": name, "options": rows} for name in names],
        "share_beside_others": 0.7,
        "joint": [],
        "fixed_bytes": 5,
        "parameters": 7,
    }
    found = read_sensitivities(value, {})
    assert [found.options[name][0].kl for name in names] == pytest.approx([0.21, 0.3])
    assert [found.alone(name, found.options[name][0]) for name in names] == [0.3, 0.3]
