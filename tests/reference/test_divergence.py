"""Log-probabilities and divergences against plain numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune.reference.divergence import (
    NO_MASS,
    kl_rows,
    log_softmax,
    pick,
    to_log_probabilities,
    top_of_rows,
)
from edgetune.reference.rows import RowFile

LOGITS = (np.random.default_rng(0).normal(size=(6, 40)) * 5).astype(np.float32)
OTHER = (np.random.default_rng(1).normal(size=(6, 40)) * 5).astype(np.float32)
TARGETS = np.array([0, 39, 7, 7, 1, 20])


def expected_log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def test_log_softmax_and_kl() -> None:
    log_p, log_q = expected_log_softmax(LOGITS), expected_log_softmax(OTHER)
    assert log_softmax(LOGITS) == pytest.approx(log_p, abs=1e-12)
    assert kl_rows(LOGITS, OTHER) == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1))
    assert (kl_rows(LOGITS, LOGITS) == 0).all()
    # a shift of all logits changes no probability
    assert kl_rows(LOGITS, LOGITS + 3) == pytest.approx(0, abs=1e-6)
    assert (kl_rows(LOGITS, LOGITS + 3) >= 0).all()


def test_pick_takes_one_value_a_row() -> None:
    assert pick(LOGITS, TARGETS).tolist() == [LOGITS[n, t] for n, t in enumerate(TARGETS)]


@pytest.mark.parametrize("most", [8, 40, 64])
def test_top_and_rest_are_the_whole_mass(tmp_path: Path, most: int) -> None:
    with RowFile(tmp_path / "rows.npy", 6, 40) as rows:
        rows.write(0, LOGITS)
        to_log_probabilities(rows)
        top = top_of_rows(rows, TARGETS, most)
    stored = np.load(tmp_path / "rows.npy")
    assert stored == pytest.approx(expected_log_softmax(LOGITS), abs=1e-6)
    k = min(most, 40)
    assert top["top_ids"].shape == top["top_logprobs"].shape == (6, k)
    assert (top["top_ids"].dtype, top["top_logprobs"].dtype) == (np.int32, np.float32)
    assert (np.diff(top["top_logprobs"]) <= 0).all()
    assert (np.take_along_axis(stored, top["top_ids"].astype(int), 1) == top["top_logprobs"]).all()
    assert (top["target_logprob"] == stored[np.arange(6), TARGETS]).all()
    mass = np.exp(top["top_logprobs"].astype(float)).sum(-1) + np.exp(
        top["rest_logprob"].astype(float)
    )
    assert mass == pytest.approx(1, abs=1e-5)
    if k == 40:
        assert (top["rest_logprob"] == np.float32(NO_MASS)).all()


def test_equals_are_ordered_by_id(tmp_path: Path) -> None:
    with RowFile(tmp_path / "rows.npy", 1, 5) as rows:
        rows.write(0, np.array([[1, 3, 1, 3, 1]], dtype=np.float32))
        top = top_of_rows(rows, np.array([0]), 5)
    assert top["top_ids"].tolist() == [[1, 3, 0, 2, 4]]
