"""What `edgetune inspect` says of adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.inspect import describe
from tests.adapter_kinds import KINDS, make_kind
from tests.merge.test_vocabulary import make_resized
from tests.tiny import build_base, make_adapter


@pytest.mark.parametrize(
    ("kind", "label", "rank", "parameters"),
    [
        # two layers; q 64×64, v 32×64, down 64×128
        ("LoHa", "LoHa", 4, 2 * 2 * 4 * (64 + 64 + 32 + 64 + 64 + 128)),
        ("IA3", "IA3", None, 2 * (64 + 32 + 128)),
        ("SHiRA", "SHiRA", 4, 2 * 4 * (64 + 64 + 32 + 64 + 64 + 128)),  # its positions are none
        ("VB-LoRA", "VB-LoRA", 4, 16 * 16 + 2 * 4 * 16 * (4 + 4 + 2 + 4 + 4 + 8)),
        ("trainable tokens", "trainable tokens", None, 84 * 64),
    ],
)
def test_types(
    kind: str, label: str, rank: int | None, parameters: int, tiny_llama: Path, tmp_path: Path
) -> None:
    facts = describe(make_kind(tiny_llama, KINDS[kind], tmp_path / "adapter"))
    assert (facts["type"], facts["peft_type"]) == (label, KINDS[kind].peft_type)
    assert facts["rank"] == rank
    assert facts["parameters"] == parameters
    assert facts["problems"] == []


def test_options_and_copies(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_resized(
        tiny_llama, tmp_path / "adapter", modules_to_save=["lm_head"], target_modules=["q_proj"]
    )
    facts = describe(adapter)
    # the embedding and the head are stored whole; the head's second copy does not count
    assert facts["parameters"] == 2 * 4 * (64 + 64) + 2 * 300 * 64
    assert facts["options"] is None
    tokens = make_adapter(tiny_llama, folder=tmp_path / "t", trainable_token_indices=[1, 2])
    assert describe(tokens)["options"] == ["trainable_token_indices"]
    dora = make_adapter(tiny_llama, "dora", folder=tmp_path / "d")
    assert describe(dora)["type"] == "DoRA"


def test_refused_types_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "a")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "PREFIX_TUNING"}))
    facts = describe(adapter)
    assert facts["type"] == "prefix tuning"
    (problem,) = facts["problems"]
    assert problem.startswith("peft_type PREFIX_TUNING (prefix tuning): it learned keys and values")


def test_a_plan_refuses_what_cannot_be_exported(tmp_path: Path) -> None:
    from edgetune.problems import BUILD_LIBRARIES, problems
    from edgetune.recipe import Recipe
    from edgetune.sources.resolve import resolve

    base = build_base(tmp_path / "base", "mixtral", num_local_experts=4)
    adapter = make_adapter(base, folder=tmp_path / "adapter", target_modules=["q_proj"])
    recipe = Recipe.model_validate({"name": "x", "base": str(base), "adapters": [str(adapter)]})
    inputs, found = resolve(recipe)
    assert inputs is not None
    assert found == []
    installed = dict.fromkeys([*BUILD_LIBRARIES, "bitsandbytes"], "1")
    (problem,) = problems(recipe, inputs, installed)
    assert "mixtral is a mixture of experts: it can be merged, not exported" in problem.message


def test_a_plan_says_what_cannot_be_combined(tiny_llama: Path, tmp_path: Path) -> None:
    from edgetune.problems import BUILD_LIBRARIES, problems
    from edgetune.recipe import Recipe
    from edgetune.sources.resolve import resolve

    pair = [make_adapter(tiny_llama, folder=tmp_path / f"{r}", r=r) for r in (4, 8)]
    recipe = Recipe.model_validate({
        "name": "x", "base": str(tiny_llama), "adapters": [str(p) for p in pair],
        "combine": {"how": "ties", "density": 0.5},
    })  # fmt: skip
    inputs, _ = resolve(recipe)
    assert inputs is not None
    installed = dict.fromkeys([*BUILD_LIBRARIES, "bitsandbytes"], "1")
    (problem,) = problems(recipe, inputs, installed)
    assert problem.message == "combine: ties needs adapters of one rank, these have 4, 8"
    assert problem.hint == "take ties_svd"
