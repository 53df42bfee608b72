"""KL, its lower bound, retention, and what happens when there is nothing to measure."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgetune.validate.fidelity import (
    TOP_K_BOUND,
    WHOLE_VOCABULARY,
    fidelity,
    kl_by_position,
    kl_top_k,
    kl_whole,
)
from tests.validate.fakes import make_evaluation, make_item, make_self_test

FIGURES = ("perplexity_ratio", "kl_mean", "kl_p99", "top1_agreement", "retention", "kl_base")


def _logprobs(seed: int, rows: int = 6, width: int = 50) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(scale=3, size=(rows, width))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def _top(p: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.argsort(-p, axis=1)[:, :k]
    top = np.take_along_axis(p, ids, axis=1)
    mass = np.maximum(1 - np.exp(top.astype(np.float64)).sum(axis=1), 0)
    with np.errstate(divide="ignore"):
        rest = np.log(mass)
    return ids, top, np.maximum(rest, np.finfo(np.float32).min).astype(np.float32)


def test_kl_is_scipys_relative_entropy() -> None:
    p, q = _logprobs(0), _logprobs(1)
    expected = stats.entropy(np.exp(p.astype(np.float64)), np.exp(q.astype(np.float64)), axis=1)
    np.testing.assert_allclose(kl_whole(p, q), expected, rtol=1e-5)


def test_kl_of_the_same_model_is_zero_and_never_negative() -> None:
    p = _logprobs(0)
    assert (kl_whole(p, p) == 0).all()
    assert (kl_top_k(*_top(p, 5), p) < 1e-6).all()
    assert (kl_whole(p, p + np.float32(1e-7)) >= 0).all()


def test_a_token_that_the_reference_excludes_adds_nothing() -> None:
    p = np.array([[np.log(0.5), np.log(0.5), -np.inf]], dtype=np.float32)
    q = np.log(np.array([[0.25, 0.25, 0.5]], dtype=np.float32))
    assert kl_whole(p, q)[0] == pytest.approx(np.log(2))


@pytest.mark.parametrize("k", [1, 5, 20, 49])
def test_the_top_k_figure_is_a_lower_bound_that_grows_with_k(k: int) -> None:
    p, q = _logprobs(0), _logprobs(1)
    bound, whole = kl_top_k(*_top(p, k), q), kl_whole(p, q)
    assert (bound <= whole + 1e-6).all()
    assert (bound >= kl_top_k(*_top(p, 1), q) - 1e-6).all()


def test_the_top_k_of_the_whole_vocabulary_is_the_whole_kl() -> None:
    p, q = _logprobs(0), _logprobs(1)
    np.testing.assert_allclose(kl_top_k(*_top(p, 50), q), kl_whole(p, q), atol=1e-5)


def test_nan_stays_nan() -> None:
    p, q = _logprobs(0), _logprobs(1)
    q[2] = np.nan
    assert np.isnan(kl_whole(p, q)[2])
    assert np.isnan(kl_top_k(*_top(p, 5), q)[2])
    assert np.isfinite(np.delete(kl_whole(p, q), 2)).all()


def test_figures_of_an_even_loss() -> None:
    items = [make_item(n, "a", "a") for n in range(8)]
    found = fidelity(
        make_self_test(items), make_evaluation(["a"] * 8, 0.1, -0.3).positions, WHOLE_VOCABULARY
    )
    assert found["kl_mean"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert found["kl_p99"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert found["retention"]["value"] == pytest.approx(1 - 0.1 / 2)
    assert found["kl_base"]["value"] == pytest.approx(2.0)
    assert found["perplexity_ratio"]["value"] == pytest.approx(np.exp(0.2), rel=1e-6)
    assert found["top1_agreement"]["value"] == 1.0
    assert found["non_finite_positions"] == 0
    assert found["kl_kind"] == "whole vocabulary"


def test_an_identical_model_loses_nothing() -> None:
    items = [make_item(n, "a", "a") for n in range(3)]
    found = fidelity(make_self_test(items), make_evaluation(["a"] * 3, 0.0).positions, TOP_K_BOUND)
    assert found["retention"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["perplexity_ratio"]["value"] == pytest.approx(1, abs=1e-6)


def test_uneven_items_give_bounds_around_the_figure() -> None:
    items = [make_item(n, "a", "a") for n in range(20)]
    kl = np.repeat(np.linspace(0, 0.2, 20), 2)
    found = fidelity(make_self_test(items), make_evaluation(["a"] * 20, kl).positions, TOP_K_BOUND)
    for name in ("kl_mean", "retention"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


@pytest.mark.parametrize(
    ("base", "reason"), [(None, "no base model to compare with"), (0.0, "changed nothing")]
)
def test_retention_without_a_base_is_null_with_a_reason(base: float | None, reason: str) -> None:
    items = [make_item(n, "a", "a") for n in range(3)]
    found = fidelity(make_self_test(items, base), make_evaluation(["a"] * 3).positions, TOP_K_BOUND)
    assert found["retention"] is None
    assert found["kl_base"] is None
    assert reason in found["reasons"]["retention"]
    assert found["kl_mean"] is not None


def test_one_output_that_is_not_finite_leaves_no_figure() -> None:
    items = [make_item(n, "a", "a") for n in range(3)]
    kl = np.full(6, 0.1)
    kl[4] = np.nan
    found = fidelity(make_self_test(items), make_evaluation(["a"] * 3, kl).positions, TOP_K_BOUND)
    assert [found[name] for name in FIGURES] == [None] * 6
    assert found["non_finite_positions"] == 1
    assert found["reasons"]["kl_mean"] == "the package's output is not finite at 1 of 6 positions"


def test_kl_by_position_adds_up_to_the_whole() -> None:
    lengths = [1, 3, 7, 20, 12]
    item_of = np.repeat(np.arange(5), lengths)
    place = np.concatenate([np.arange(1, length + 1) for length in lengths])
    kl = place / 100 + item_of / 1000
    rows = kl_by_position(item_of, kl)
    edges = [(row["first"], row["last"]) for row in rows]
    assert edges == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 8), (9, 16), (17, 20)]
    for row in rows:
        here = (place >= row["first"]) & (place <= row["last"])
        assert row["positions"] == here.sum()
        assert row["kl"]["value"] == pytest.approx(kl[here].mean())
        assert row["kl"]["low"] <= row["kl"]["value"] <= row["kl"]["high"]
    total = sum(row["kl"]["value"] * row["positions"] for row in rows)
    assert total / sum(lengths) == pytest.approx(kl.mean())
    assert kl_by_position(np.array([], dtype=np.int64), np.array([])) == []


def test_kl_by_position_is_null_where_an_output_is_not_finite() -> None:
    items = [make_item(n, "a", "a") for n in range(3)]
    kl = np.full(6, 0.1)
    good = fidelity(make_self_test(items), make_evaluation(["a"] * 3, kl).positions, TOP_K_BOUND)
    assert [row["positions"] for row in good["kl_by_position"]] == [3, 3]
    kl[4] = np.nan
    bad = fidelity(make_self_test(items), make_evaluation(["a"] * 3, kl).positions, TOP_K_BOUND)
    assert bad["kl_by_position"] is None
    assert "not finite" in bad["reasons"]["kl_by_position"]
