"""Task metrics, flips and the worst answers."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.validate.evaluate import same_answer, worst_examples
from edgetune.validate.metrics import measure_task
from tests.validate.fakes import make_evaluation, make_item, make_self_test

ITEMS = [
    make_item(1, "yes", "yes"),
    make_item(2, "yes", "yes"),
    make_item(3, "yes", "no"),
    make_item(4, "yes", "no"),
    make_item(5, None, None),
]
ANSWERS = ["yes", "lost", "yes", "other", None]


def test_exact_match_is_paired_item_by_item() -> None:
    found = measure_task(make_self_test(ITEMS), make_evaluation(ANSWERS))
    metric = found.metrics["exact_match"]
    assert (metric["base"], metric["reference"], metric["candidate"]) == (0.0, 0.5, 0.5)
    assert (metric["difference"], metric["n"]) == (0.0, 4)
    assert (metric["lost"], metric["gained"], metric["p_value"]) == (1, 1, 1.0)
    assert metric["low"] < 0 < metric["high"]
    assert found.exact == [True, False, True, False, None]
    assert found.flips == {"answers": 4, "changed": 3, "lost": 1, "gained": 1}


def test_answers_are_compared_normalized() -> None:
    found = measure_task(make_self_test(ITEMS[:1]), make_evaluation([" YES \n"]))
    assert found.metrics["exact_match"]["candidate"] == 1.0


def test_the_answer_logprob_has_a_paired_interval() -> None:
    found = measure_task(make_self_test(ITEMS), make_evaluation(ANSWERS, logprob=-0.3))
    metric = found.metrics["answer_logprob"]
    assert metric["candidate"] == pytest.approx(-0.3)
    assert metric["difference"] == pytest.approx(-0.2)
    assert (metric["low"], metric["high"]) == pytest.approx((-0.2, -0.2))
    assert (metric["base"], metric["n"]) == (-3.0, 5)


def test_a_logprob_that_is_not_finite_is_no_metric() -> None:
    evaluation = make_evaluation(ANSWERS)
    evaluation.positions.target_logprob[3] = np.nan
    found = measure_task(make_self_test(ITEMS), evaluation)
    assert list(found.metrics) == ["exact_match"]


def test_text_of_the_reference_itself_has_no_metric() -> None:
    found = measure_task(make_self_test(ITEMS, metrics={}), make_evaluation(ANSWERS))
    assert found.metrics == {}


def test_a_base_that_was_not_asked_is_null() -> None:
    items = [make_item(1, "a", "a", base_exact=None, base_answer_logprob=None)]
    found = measure_task(make_self_test(items), make_evaluation(["a"]))
    assert found.metrics["exact_match"]["base"] is None
    assert found.metrics["answer_logprob"]["base"] is None


def test_the_worst_answers_come_first_and_unchanged_ones_never() -> None:
    kl = np.repeat([0.0, 0.1, 0.9, 0.5, 0.0], 2)
    evaluation = make_evaluation(["yes", "lost", "nope", "other", None], kl)
    self_test = make_self_test(ITEMS)
    found = worst_examples(self_test, evaluation, measure_task(self_test, evaluation).exact)
    assert [row["id"] for row in found] == ["2", "3", "4"]
    assert found[0] == {
        "id": "2",
        "prompt": "prompt 2",
        "expected": "yes",
        "reference": "yes",
        "package": "lost",
        "lost": True,
        "kl_mean": pytest.approx(0.1),
    }
    assert len(worst_examples(self_test, evaluation, [None] * 5, most=1)) == 1


def test_an_example_whose_output_was_not_finite_carries_no_nan() -> None:
    evaluation = make_evaluation(["yes", "lost", "no", "no", None], np.nan)
    found = worst_examples(make_self_test(ITEMS), evaluation, [None] * 5)
    assert [row["kl_mean"] for row in found] == [None]


def test_the_same_answer_may_differ_in_white_space() -> None:
    assert same_answer("a  b\n", " a b")
    assert same_answer("a\ufffd", "a")
    assert not same_answer("a b", "ab")
    assert not same_answer("A", "a")
