"""The decoding loop says what transformers' own generation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.checkpoint.trained import load_plain
from edgetune.reference.generation import greedy, sample
from tests.tiny import build_base

PROMPTS = [[5, 6, 7], [8], [7, 6, 5], [200, 100, 50, 25], [9]]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return load_plain(tiny_llama)


def transformers_greedy(model: Any, prompt: list[int], eos: list[int], most: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most,
        eos_token_id=eos, pad_token_id=259,
    )  # fmt: skip
    return [token for token in out[0, len(prompt) :].tolist() if token not in eos]


def test_greedy_is_transformers_greedy(model: Any) -> None:
    done: list[int] = []
    free = greedy(model, PROMPTS, [], lambda _: 20, done.append)
    assert done == [2, 4, 5]
    unsaid = next(n for n in range(288) if not any(n in answer for answer in free))
    assert free == [transformers_greedy(model, p, [unsaid], 20) for p in PROMPTS]
    assert len({tuple(answer) for answer in free}) == len(PROMPTS)
    # a token that the answers hold ends them, and is not part of them
    eos = [free[0][3], free[3][1]]
    ended = greedy(model, PROMPTS, eos, lambda _: 20, done.append)
    assert ended == [transformers_greedy(model, p, eos, 20) for p in PROMPTS]
    assert ended[0] == free[0][: free[0].index(eos[0])]
    assert len(ended[3]) <= 1


def test_the_most_new_tokens_depend_on_the_prompt(model: Any) -> None:
    answers = greedy(model, PROMPTS, [], lambda length: 6 - length, lambda _: None)
    assert [len(answer) for answer in answers] == [3, 5, 3, 2, 5]


def test_samples_follow_the_seed_and_the_probabilities(model: Any) -> None:
    prompts = [[8]] * 400
    drawn = sample(model, prompts, [], 1, 3, lambda _: None)
    assert drawn == sample(model, prompts, [], 1, 3, lambda _: None)
    assert drawn != sample(model, prompts, [], 1, 4, lambda _: None)
    with torch.no_grad():
        p = torch.softmax(model(input_ids=torch.tensor([[8]])).logits[0, -1], -1)
    likely = int(p.argmax())
    share = sum(answer == [likely] for answer in drawn) / len(drawn)
    assert share == pytest.approx(float(p[likely]), abs=0.1)


def test_a_sample_keeps_the_token_that_ended_it(model: Any) -> None:
    (answer,) = sample(model, [[8]], range(288), 10, 0, lambda _: None)
    assert len(answer) == 1


def test_an_answer_past_the_switch_of_a_longrope_model(tmp_path: Path) -> None:
    """The cache is computed again where all positions are rotated with other tables."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 24,
    }
    config = {"rope_parameters": rope, "original_max_position_embeddings": 24}
    model = load_plain(build_base(tmp_path / "base", "phi3", **config))
    prompts = [
        [(5 * n + k) % 250 for n in range(length)] for k, length in enumerate((4, 23, 24, 30))
    ]
    found = greedy(model, prompts, [], lambda _: 30, lambda _: None)
    for prompt, answer in zip(prompts, found, strict=True):
        text = list(prompt)
        with torch.no_grad():
            for token in answer:
                assert int(model(torch.tensor([text])).logits[0, -1].argmax()) == token
                text.append(token)
    unsaid = next(n for n in range(288) if not any(n in answer for answer in found))
    assert found == [transformers_greedy(model, p, [unsaid], 30) for p in prompts]
