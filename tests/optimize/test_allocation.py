"""Bits under a budget, against every allocation there is in small cases."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.optimize.allocation import (
    Allocation,
    Option,
    best_under,
    hull,
    make_path,
    smallest_within,
)

MODULES = ("a", "b", "c", "d")
OPTIONS = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0, 1, allow_nan=False)),
    min_size=1,
    max_size=4,
    unique_by=lambda pair: pair[0],
)
CASES = st.dictionaries(st.sampled_from(MODULES), OPTIONS, min_size=1)


def made(case: dict[str, list[tuple[int, float]]]) -> dict[str, list[Option]]:
    return {
        module: [Option(f"w{size}", size, kl) for size, kl in rows] for module, rows in case.items()
    }


def every(options: dict[str, list[Option]]) -> list[Allocation]:
    return [
        Allocation(dict(zip(options, chosen, strict=True))) for chosen in product(*options.values())
    ]


@given(CASES)
def test_each_point_of_the_path_is_the_best_of_its_size(
    case: dict[str, list[tuple[int, float]]],
) -> None:
    options = made(case)
    for point in make_path(options):
        best = min(a.kl for a in every(options) if a.bytes <= point.bytes)
        assert point.kl <= best + 1e-9


@given(CASES, st.integers(1, 240))
def test_the_best_within_a_budget_is_within_one_step_of_the_optimum(
    case: dict[str, list[tuple[int, float]]], budget: int
) -> None:
    options = made(case)
    within = [a for a in every(options) if a.bytes <= budget]
    found = best_under(options, budget)
    if not within:
        assert found is None
        return
    assert found is not None
    assert found.bytes <= budget
    # The relaxation's optimum is no worse than the integral one, and is at most one upgrade away.
    steps = [
        a.kl - b.kl
        for rows in options.values()
        for a, b in zip(hull(rows), hull(rows)[1:], strict=False)
    ]
    assert found.kl <= min(a.kl for a in within) + max(steps, default=0.0) + 1e-9


@given(CASES, st.floats(0, 4))
def test_the_smallest_within_a_limit_is_within_one_step_of_the_optimum(
    case: dict[str, list[tuple[int, float]]], limit: float
) -> None:
    options = made(case)
    within = [a for a in every(options) if a.kl <= limit]
    found = smallest_within(options, limit)
    assert (found is None) == (not within)
    if found is None:
        return
    assert found.kl <= limit
    steps = [
        b.bytes - a.bytes
        for rows in options.values()
        for a, b in zip(hull(rows), hull(rows)[1:], strict=False)
    ]
    optimum = min(a.bytes for a in within)
    assert optimum <= found.bytes <= optimum + max(steps, default=0)


def test_a_large_step_over_the_limit_is_gone_around() -> None:
    options = {
        "head": [Option("w4", 100, 0.5), Option("w8", 1100, 0.0)],  # 0.0005 a byte
        "down": [Option("w4", 10, 0.2), Option("w8", 510, 0.0)],  # 0.0004 a byte
    }
    found = smallest_within(options, 0.55)
    assert found is not None
    assert found.widths == {"head": "w4", "down": "w8"}


def test_what_the_limit_does_not_ask_for_is_taken_back() -> None:
    options = {
        "small": [Option("w4", 10, 0.1), Option("w8", 20, 0.0)],
        "large": [Option("w4", 100, 0.5), Option("w8", 200, 0.0)],
    }
    found = smallest_within(options, 0.1)
    assert found is not None
    assert found.widths == {"small": "w4", "large": "w8"}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_equal_rates_go_by_name(order: tuple[str, ...]) -> None:
    options = {name: [Option("w4", 10, 0.1), Option("w8", 20, 0.0)] for name in order}
    widths = [allocation.widths for allocation in make_path(options)]
    assert widths[1] == {"a": "w8", "b": "w4"}


def test_an_option_that_is_larger_and_worse_is_never_taken() -> None:
    rows = [Option("w4-g16", 12, 0.3), Option("w4-g32", 10, 0.2), Option("w8", 20, 0.0)]
    assert [option.width for option in hull(rows)] == ["w4-g32", "w8"]


def test_a_large_step_that_small_ones_left_no_room_for_is_taken_first() -> None:
    small = {f"m{n}": [Option("4", 10, 0.02), Option("8", 12, 0.0)] for n in range(10)}
    options = {"head": [Option("4", 100, 0.9), Option("8", 200, 0.1)], **small}
    found = best_under(options, 300)
    assert found is not None
    assert found.widths["head"] == "8"
    assert found.kl == pytest.approx(0.1 + 10 * 0.02)
