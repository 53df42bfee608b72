"""Threads, and how long an answer may get."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetune.reference import measure
from edgetune.reference.measure import deterministic, max_new_tokens, threads_for
from edgetune.reference.render import ScoredItem


def test_a_small_model_gets_one_thread(tiny_phi3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_for(tiny_phi3, 6) == 1
    monkeypatch.setattr(measure, "_SMALL_BYTES", 1000)
    assert threads_for(tiny_phi3, 6) == 6


def test_torch_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    with deterministic(before + 1):
        assert torch.get_num_threads() == before + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("targets", "answer", "most"), [(5, "x", 13), (250, "x", 256), (900, "x", 256), (5, None, 0)]
)
def test_an_answer_may_get_a_little_longer_than_the_longest_expected(
    targets: int, answer: str | None, most: int
) -> None:
    short = ScoredItem("1", (1,), (2, 3), "", answer)
    long = ScoredItem("2", (1,), tuple(range(targets)), "", answer)
    assert max_new_tokens([short, long]) == most
