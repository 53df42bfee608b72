"""Scores and answers of the shipped graph against torch and against each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.errors import UsageError
from edgetune.runtime.decoder import generate, log_softmax, score, score_and_answer, start
from edgetune.runtime.session import OpenPackage
from tests.tiny_package import END


@pytest.fixture(scope="module")
def items(package: Path) -> list[dict[str, Any]]:
    lines = (package / "self_test" / "items.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_scores_are_near_the_reference(
    opened: OpenPackage, package: Path, items: list[dict[str, Any]]
) -> None:
    reference = np.load(package.parent / "reference" / "logprobs.npy")
    found = np.concatenate([score(opened, i["prompt_ids"], i["target_ids"]) for i in items])
    assert found.shape == reference.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(axis=1), 1, atol=1e-5)
    # Eight-bit weights: near, and not the same.
    assert 0 < np.abs(found - reference).max() < 1


def test_scoring_is_repeatable_and_depends_on_the_prompt(
    opened: OpenPackage, items: list[dict[str, Any]]
) -> None:
    prompt, target = items[0]["prompt_ids"], items[0]["target_ids"]
    first = score(opened, prompt, target)
    assert np.array_equal(first, score(opened, prompt, target))
    assert not np.array_equal(first, score(opened, prompt[1:], target))


def test_score_and_answer_is_score_and_generate(
    opened: OpenPackage, items: list[dict[str, Any]]
) -> None:
    lengths = set()
    for item in items:
        prompt = item["prompt_ids"]
        answer = list(generate(opened, prompt, 12))
        # Targets that follow the answer in part, wholly, not at all, and past its end.
        for target in (item["target_ids"], answer or [5], [*answer[:2], 9, 9], [*answer, END]):
            found, ids = score_and_answer(opened, prompt, target, 12)
            assert ids == answer
            assert np.array_equal(found, score(opened, prompt, target))
        lengths.add(len(answer))
    assert len(lengths) >= 1


def test_a_sliding_window_is_never_rewound(
    opened: OpenPackage, items: list[dict[str, Any]]
) -> None:
    config = json.loads(json.dumps(opened.config))
    config["model"]["decoder"]["sliding_window"] = {"window_size": 200}
    windowed = replace(opened, config=config)
    item = items[0]
    plain = score_and_answer(opened, item["prompt_ids"], item["target_ids"], 12)
    found = score_and_answer(windowed, item["prompt_ids"], item["target_ids"], 12)
    assert found[1] == plain[1]
    assert np.array_equal(found[0], plain[0])


def test_an_answer_is_no_longer_than_asked_and_room_allows(opened: OpenPackage) -> None:
    assert len(list(generate(opened, [1, 50, 60], 5))) <= 5
    nearly_full = [50] * (opened.context_length - 2)
    assert len(list(generate(opened, nearly_full, 50))) <= 2


@pytest.mark.parametrize("length", [0, 256])
def test_a_prompt_without_room_is_refused(opened: OpenPackage, length: int) -> None:
    with pytest.raises(UsageError, match=f"the prompt has {length} tokens, the model takes 1 to"):
        list(generate(opened, [50] * length, 5))


def test_no_token_ends_an_answer_before_its_least_length(opened: OpenPackage) -> None:
    generator = start(opened, [1, 50], 60, min_length=60)
    for _ in range(58):
        generator.generate_next_token()
    assert generator.token_count() == 60


def test_log_softmax_is_exact_and_marks_what_is_not_finite() -> None:
    found = log_softmax(np.array([1000.0, 1000.0], dtype=np.float32))
    np.testing.assert_allclose(found, np.log([0.5, 0.5]), rtol=1e-6)
    assert np.isnan(log_softmax(np.array([1.0, np.inf]))).all()
    assert np.isnan(log_softmax(np.array([1.0, np.nan]))).all()
