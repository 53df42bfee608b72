"""Logits at scored positions equal those of one plain forward pass over the whole item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.checkpoint.trained import load_plain, load_trained_model
from edgetune.errors import StepFailedError
from edgetune.reference import scoring
from edgetune.reference.render import ScoredItem
from edgetune.reference.scoring import score_items, switch_length, vocabulary_size
from tests.tiny import build_base

ITEMS = [
    ScoredItem("1", (5, 6, 7), (8, 9, 10, 11, 259), "", None),
    ScoredItem("2", (5,), tuple(range(40)), "", None),
    ScoredItem("3", (1, 2), (3,), "", None),
]


@pytest.fixture(scope="module", params=["llama", "phi3", "adapter"])
def model(request: pytest.FixtureRequest, tiny_llama: Path, tiny_phi3: Path, lora: Path) -> Any:
    if request.param == "adapter":
        return load_trained_model(tiny_phi3, None, [{"path": str(lora), "weight": 1.0}])
    return load_plain(tiny_llama if request.param == "llama" else tiny_phi3)


@pytest.mark.parametrize("most", [1 << 25, 16 * 288])
def test_rows_are_the_logits_before_each_target(
    model: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a long target is fed in parts through the cache."""
    monkeypatch.setattr(scoring, "_MOST_LOGITS", most)
    told: list[str] = []
    parts = list(score_items(model, ITEMS, "trained model", told.append))
    assert told == [f"trained model: item {n} of 3" for n in (1, 2, 3)]
    assert max(logits.shape[0] for _, logits in parts) <= most // vocabulary_size(model)
    expected = []
    with torch.no_grad():
        for item in ITEMS:
            ids = torch.tensor([item.prompt_ids + item.target_ids])
            expected.append(model(input_ids=ids).logits[0, len(item.prompt_ids) - 1 : -1])
    rows = [n for row, logits in parts for n in range(row, row + logits.shape[0])]
    assert rows == list(range(46))
    assert torch.cat([logits for _, logits in parts]) == pytest.approx(
        torch.cat(expected), abs=2e-5
    )


def test_logits_that_are_not_finite_name_the_item(model: Any) -> None:
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        kept = weight[2].clone()
        weight[2] = torch.nan
    try:
        with pytest.raises(
            StepFailedError, match="base alone: logits that are not finite at item 2"
        ):
            list(score_items(model, ITEMS, "base alone", lambda _: None))
    finally:
        with torch.no_grad():
            weight[2] = kept


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Phi-3 that rotates a text of more than 24 tokens with other tables."""
    folder = tmp_path_factory.mktemp("longrope")
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 24,
    }
    config = {"rope_parameters": rope, "original_max_position_embeddings": 24}
    return load_plain(build_base(folder / "base", "phi3", **config))


@pytest.mark.parametrize("most", [1 << 25, 7 * 288])
@pytest.mark.parametrize("prompt", [3, 23, 24, 25, 30])
def test_a_text_that_grows_past_the_switch_is_read_anew(
    longrope: Any, prompt: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_MOST_LOGITS", most)
    ids = tuple((7 * n) % 251 for n in range(prompt + 40))
    item = ScoredItem("1", ids[:prompt], ids[prompt:], "", None)
    found = torch.cat([logits for _, logits in score_items(longrope, [item], "", lambda _: None)])
    with torch.no_grad():
        expected = torch.stack(
            [longrope(torch.tensor([ids[:n]])).logits[0, -1] for n in range(prompt, len(ids))]
        )
    assert found == pytest.approx(expected, abs=2e-5)
    assert switch_length(longrope) == 24
