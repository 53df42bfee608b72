"""How a plan stores a base's modules, and what is refused; on headers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetune.checkpoint.adapter import Adapter
from edgetune.checkpoint.folder import CheckpointFolder
from edgetune.checkpoint.header import TensorEntry
from edgetune.errors import Problem
from edgetune.optimize.schemes import find_scheme
from edgetune.recipe import Recipe
from edgetune.storage import changed_modules, plan_widths, storage_problems

LAYER = "model.layers.0"
SHAPES = {
    "model.embed_tokens": (8, 64), "lm_head": (8, 64), f"{LAYER}.self_attn.q_proj": (64, 64),
    f"{LAYER}.mlp.up_proj": (128, 64), f"{LAYER}.mlp.down_proj": (64, 128),
    "model.norm": (64,),
}  # fmt: skip


def entry(name: str, shape: tuple[int, ...]) -> TensorEntry:
    return TensorEntry(name=name, dtype="F32", shape=shape, file="m", begin=0, nbytes=4)


def base_of(shapes: dict[str, tuple[int, ...]] | None = None, **changes: Any) -> CheckpointFolder:
    whole = CheckpointFolder(
        path=Path("base"),
        config={"num_hidden_layers": 1},
        tensors={
            f"{n}.weight": entry(f"{n}.weight", s) for n, s in {**SHAPES, **(shapes or {})}.items()
        },
        files=(),
        side_files=(),
        weight_bytes=0,
        quantization=None,
        tied=False,
        generation={},
        model_type="llama",
    )
    return replace(whole, **changes)


def adapter_of(*names: str) -> Adapter:
    tensors = {f"base_model.model.{n}": entry(n, (4, 64)) for n in names}
    return Adapter(Path("a"), {}, "LORA", False, 4, 8.0, None, tensors, ())


def recipe_of(**values: Any) -> Recipe:
    base = {"path": "base", "trained_as": {"type": "nf4"}}
    return Recipe.model_validate({"name": "r", "base": base, **values})


def problems(recipe: Recipe, base: CheckpointFolder, *adapters: Adapter) -> list[Problem]:
    scheme = find_scheme(recipe.scheme)
    widths = plan_widths(recipe, scheme, scheme.group_size, base, adapters)
    return list(storage_problems(recipe, scheme, widths, base, (recipe.onto,)))


ATTENTION = adapter_of(f"{LAYER}.self_attn.q_proj.lora_A.weight")


def test_changed_modules_are_those_with_a_tensor_of_an_adapter() -> None:
    names = (
        f"{LAYER}.self_attn.q_proj.lora_magnitude_vector",
        "lm_head.weight",
        "model.embed_tokens.token_adapter.trainable_tokens_delta",
        "vera_A",
        f"{LAYER}.mlp.up_proj_2.lora_A.weight",
    )
    found = changed_modules(base_of(), [adapter_of(*names)])
    assert found == {f"{LAYER}.self_attn.q_proj", "lm_head", "model.embed_tokens"}


def test_nf4_is_kept_where_no_adapter_changed_it() -> None:
    recipe, base = recipe_of(scheme="nf4a16"), base_of()
    assert problems(recipe, base, ATTENTION) == []
    widths = plan_widths(recipe, find_scheme("nf4a16"), 64, base, [ATTENTION])
    assert {name: widths.of(name).name for name in SHAPES if "norm" not in name} == {
        "model.embed_tokens": "w8-g32", "lm_head": "w8-g32",
        f"{LAYER}.self_attn.q_proj": "w8-g32",
        f"{LAYER}.mlp.up_proj": "nf4-g64", f"{LAYER}.mlp.down_proj": "nf4-g64",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base": "base"}, "keeps a base's NF4 weights, and base has none"),
        ({"base": {"path": "b", "trained_as": {"type": "fp4"}}}, "keeps a base's NF4 weights"),
        ({"onto": "original"}, "only a merge onto the dequantized base, stored in float32"),
        ({"onto": "auto"}, "only a merge onto the dequantized base"),
        ({"merge_dtype": "base"}, "only a merge onto the dequantized base"),
        ({"protect": {"mlp.up_proj": "w8", "down_proj": "fp32"}}, "would keep nothing"),
    ],
)
def test_where_there_is_no_nf4_to_keep(values: dict[str, Any], words: str) -> None:
    (found,) = problems(recipe_of(scheme="nf4a16", **values), base_of(), ATTENTION)
    assert words in found.message
    assert found.exit_code == 2


def test_rows_that_are_no_whole_blocks_are_told() -> None:
    base = base_of(shapes={f"{LAYER}.mlp.down_proj": (64, 96)})
    (found,) = problems(recipe_of(scheme="nf4a16"), base, ATTENTION)
    assert f"{LAYER}.mlp.down_proj has rows of 96 values" in found.message
    protected = recipe_of(scheme="nf4a16", protect={"down_proj": "w8"})
    assert problems(protected, base, ATTENTION) == []


def test_what_cannot_be_protected() -> None:
    (found,) = problems(recipe_of(scheme="fp32", protect={"lm_head": "w8"}), base_of())
    assert "quantizes nothing" in found.message
    (found,) = problems(recipe_of(protect={"query": "w8"}), base_of())
    assert "no module of base is called 'query'" in found.message
    (found,) = problems(recipe_of(protect={"embed_tokens": "w8"}), base_of(tied=True))
    assert "embed_tokens is tied to the head" in found.message
    assert problems(recipe_of(protect={"embed_tokens": "w8"}), base_of()) == []
