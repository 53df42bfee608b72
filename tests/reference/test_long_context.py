"""The trained model's long texts: which ones, what they ship, and what depends on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.checkpoint.trained import load_plain
from edgetune.errors import PlanError
from edgetune.files import dump_json, list_files, read_json, write_text
from edgetune.lengths import choose_lengths, thresholds
from edgetune.line import reference_step as reference_of
from edgetune.planning import plan_as_json, plan_builds
from edgetune.recipe import Recipe
from edgetune.reference.long_context import SOURCE, stretch_items
from edgetune.reference.reference import reference_step
from edgetune.reference.render import ScoredItem
from edgetune.validate.self_test import load_self_test
from tests.families import FAMILIES
from tests.reference.conftest import Arguments
from tests.tiny import _SHAPE, build_base

pytestmark = pytest.mark.line
Make = Callable[..., Arguments]
ITEMS = (
    ScoredItem("1", (1, 2), (3, 4, 5), "p", "a"),
    ScoredItem("2", (6,), (7,), "", None),
)
LENGTHS = {
    "window": 256,
    "stretches": [
        {"what": "sliding window", "at": 24, "first": 9, "last": 40, "bytes": 1},
        {"what": "context window", "at": 256, "first": 225, "last": 256, "bytes": 1},
    ],
    "not_measured": ["not measured at all: because"],
}


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("bases") / "mistral", "mistral", sliding_window=24)


@pytest.mark.parametrize("name", FAMILIES)
def test_windows_are_those_of_transformers(name: str) -> None:
    from transformers import AutoConfig

    tiny = FAMILIES[name]
    config = AutoConfig.for_model(tiny.model_type, **{**_SHAPE, **tiny.config})
    context = config.max_position_embeddings
    expected = []
    # What the model's attention reads.
    types = getattr(config, "layer_types", None) or ["sliding_attention"]
    window = getattr(config, "sliding_window", None) if "sliding_attention" in types else None
    if window is not None and window < context:
        expected.append(window)
    if config.rope_parameters.get("rope_type") == "longrope":
        expected.append(config.rope_parameters["original_max_position_embeddings"])
    written = json.loads(config.to_json_string(use_diff=False))
    assert [at for _, at in thresholds(written)] == sorted(expected)


def test_the_text_is_the_items_one_after_another_and_again() -> None:
    lengths = {"stretches": [{"what": "w", "at": 4, "first": 3, "last": 5},
                             {"what": "c", "at": 9, "first": 8, "last": 9}]}  # fmt: skip
    first, second = stretch_items(lengths, ITEMS)
    assert (first.prompt_ids, first.target_ids) == ((1, 2, 3), (4, 5, 6))
    # Seven tokens in all, then from the start.
    assert (second.prompt_ids, second.target_ids) == ((1, 2, 3, 4, 5, 6, 7, 1), (2, 3))
    assert {item.answer for item in (first, second)} == {None}
    assert len({first.id, second.id}) == 2
    assert stretch_items({"stretches": []}, ITEMS) == ()


def test_what_ships_is_what_torch_says(arguments: Make, tiny_phi3: Path, tmp_path: Path) -> None:
    reference_step(arguments(long_context=LENGTHS, adapters=[], checkpoint=tiny_phi3), tmp_path,
                   lambda _: None)  # fmt: skip
    folder = tmp_path / "self_test" / "long_context"
    assert read_json(folder / "lengths.json") == LENGTHS
    texts = load_self_test(folder)
    assert texts.facts["source"] == SOURCE
    assert texts.facts["evaluation_text"] is None
    main = load_self_test(tmp_path / "self_test")
    text = [t for item in main.items for t in (*item.prompt_ids, *item.target_ids)]
    model = load_plain(tiny_phi3)
    for number, (item, last) in enumerate(zip(texts.items, (40, 256), strict=True)):
        ids = (*item.prompt_ids, *item.target_ids)
        assert list(ids) == (text * 20)[: last + 1]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:last]])).logits[0, -1]
        wanted = torch.log_softmax(logits.double(), -1)[item.target_ids[-1]]
        found = texts.target_logprob[texts.positions(number)][-1]
        assert found == pytest.approx(float(wanted), abs=1e-4)
    # Only the top log-probabilities are kept.
    assert "long_context_logprobs.npy" not in list_files(tmp_path)


def test_private_items_are_in_no_long_text(arguments: Make, tmp_path: Path) -> None:
    job = arguments(long_context=LENGTHS, self_test_data="builtin")
    reference_step(job, tmp_path, lambda _: None)
    assert not (tmp_path / "self_test" / "long_context").exists()
    shipped = tmp_path / "shipped_self_test"
    own = load_self_test(shipped)
    text = [t for item in own.items for t in (*item.prompt_ids, *item.target_ids)]
    first, _ = load_self_test(shipped / "long_context").items
    assert [*first.prompt_ids, *first.target_ids] == text[:41]


def test_where_nothing_fits_only_the_reasons_ship(arguments: Make, tmp_path: Path) -> None:
    lengths: dict[str, Any] = {**LENGTHS, "stretches": []}
    reference_step(arguments(long_context=lengths), tmp_path, lambda _: None)
    assert list_files(tmp_path / "self_test" / "long_context") == ["lengths.json"]


def test_the_plan_says_the_lengths_and_they_are_a_part_of_the_key(
    mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({"name": "long", "base": {"path": str(mistral)}})

    def made(gib: float) -> tuple[Any, str]:
        monkeypatch.setattr("edgetune.planning.total_memory_bytes", lambda _: int(gib * (1 << 30)))
        plans = plan_builds(recipe, ["generic-x86-64"], tmp_path / "out")
        return plans[0], reference_of(plans[0], tmp_path / "out" / "steps").key

    plan, key = made(16)
    assert plan.long_context == choose_lengths(read_json(mistral / "config.json"), 10**5, 16 << 30)
    shown = plan_as_json([plan], tmp_path / "out")["plans"][0]["long_context"]
    assert [s["last"] for s in shown["stretches"]] == [40, 256]
    step = reference_of(plan, tmp_path / "out" / "steps")
    assert step.arguments["long_context"] == shown
    # The same lengths, the same step; where memory forbids one it is another.
    assert made(64)[1] == key
    less, other = made(0)
    assert less.long_context.stretches == ()
    assert other != key


def test_a_model_that_never_changes_has_no_long_texts(tiny_phi3: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "short", "base": {"path": str(tiny_phi3)}})
    plan = plan_builds(recipe, ["generic-x86-64"], tmp_path / "out")[0]
    assert plan.long_context is None
    step = reference_of(plan, tmp_path / "out" / "steps")
    assert "long_context" not in {*step.arguments, *step.inputs}


def test_a_window_that_is_no_number_is_refused(mistral: Path, tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", "mistral")
    config = {**read_json(base / "config.json"), "sliding_window": "wide"}
    write_text(base / "config.json", dump_json(config))
    recipe = Recipe.model_validate({"name": "odd", "base": {"path": str(base)}})
    with pytest.raises(PlanError, match=r"config\.json holds a value of the wrong kind"):
        plan_builds(recipe, ["generic-x86-64"], tmp_path / "out")
