"""Several adapters made one by PEFT's add_weighted_adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune.checkpoint.trained import load_trained_model
from edgetune.errors import EdgetuneError
from edgetune.recipe import Combine
from tests.merge.merged import NF4_DOUBLE, merge, parity, weighted
from tests.tiny import logits, make_adapter

pytestmark = pytest.mark.line

HOWS = Combine.model_fields["how"].annotation.__args__  # type: ignore[union-attr]
PEFT_S_OWN = {"linear"}  # left out: neither the sum it is taken for, nor a way people choose


def settings(how: str, **changes: Any) -> dict[str, Any]:
    density = None if how in ("cat", "svd") else 0.5
    rank = 6 if how.endswith("svd") else None
    return Combine(how=how, density=density, rank=rank).model_dump() | changes  # type: ignore[arg-type]


@pytest.fixture
def pair(tiny_llama: Path, tmp_path: Path) -> list[tuple[Path, float]]:
    one = make_adapter(tiny_llama, folder=tmp_path / "one", target_modules=["q_proj", "v_proj"])
    two = make_adapter(
        tiny_llama, folder=tmp_path / "two", seed=2, target_modules=["q_proj", "down_proj"]
    )
    return [(one, 0.7), (two, 0.6)]


def test_every_way_of_peft_can_be_chosen() -> None:
    import inspect

    from peft import LoraModel

    source = inspect.signature(LoraModel.add_weighted_adapter).parameters["combination_type"]
    names = {name.strip("\"' ") for name in str(source.annotation).split("[")[1][:-1].split(",")}
    assert set(HOWS) == names - PEFT_S_OWN


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=() if how in ("cat", "svd", "dare_ties") else pytest.mark.slow)
        for how in HOWS
    ],
)
def test_merged_equals_peft_s_combination(
    how: str, pair: list[tuple[Path, float]], tiny_llama: Path, tmp_path: Path
) -> None:
    combine = settings(how)
    told = merge(tmp_path / "out", tiny_llama, pair, combine=combine)
    difference, largest, effect = parity(tmp_path / "out", tiny_llama, pair, combine=combine)
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["tensors_used"] == told["tensors_total"] == 16
    from_the_sum = parity(tmp_path / "out", tiny_llama, pair)[0]
    assert (from_the_sum < 1e-4) == (how == "cat")


@pytest.mark.parametrize("how", ["dare_linear", "dare_ties", "ties"])
def test_what_is_random_is_seeded(
    how: str, pair: list[tuple[Path, float]], tiny_llama: Path
) -> None:
    given = weighted(pair)

    def answer(seed: int) -> Any:
        combine = settings(how, seed=seed)
        return logits(load_trained_model(tiny_llama, None, given, combine=combine))

    assert answer(3).equal(answer(3))
    assert answer(3).equal(answer(4)) == (how == "ties")


def test_the_majority_s_sign(pair: list[tuple[Path, float]], tiny_llama: Path) -> None:
    given = weighted(pair)
    one, other = (
        logits(load_trained_model(tiny_llama, None, given, combine=settings("ties", **changes)))
        for changes in ({}, {"majority_sign_method": "frequency"})
    )
    assert not one.equal(other)


def test_over_a_four_bit_base_and_ranks_that_differ(tiny_llama: Path, tmp_path: Path) -> None:
    one = make_adapter(tiny_llama, folder=tmp_path / "one", rank_pattern={"v_proj": 2})
    two = make_adapter(tiny_llama, folder=tmp_path / "two", seed=2, r=8, use_rslora=True)
    combine = settings("ties_svd", rank=None)
    pair = [(one, 0.7), (two, 0.3)]
    merge(tmp_path / "out", tiny_llama, pair, trained_as=NF4_DOUBLE, combine=combine)
    difference, largest, effect = parity(
        tmp_path / "out", tiny_llama, pair, trained_as=NF4_DOUBLE, combine=combine
    )
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3


# what is wrong: (make_adapter's options of the first, how, settings, words of the message)
REFUSED: dict[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    "dora": ({"kind": "dora"}, "ties", {}, "leaves the magnitudes of DoRA out"),
    "biases": ({"lora_bias": True}, "cat", {}, "leaves their biases (lora_bias) out"),
    "rslora first": ({"use_rslora": True}, "cat", {}, "the first adapter is rsLoRA, and PEFT"),
    "embeddings": (
        {"target_modules": ["lm_head", "q_proj"]}, "svd", {}, "adapters on embeddings add up in a",
    ),
    "saved modules": (
        {"modules_to_save": ["input_layernorm"]}, "svd", {}, "takes the base's place",
    ),
    "ranks": ({"r": 8}, "ties", {}, "ties needs adapters of one rank, these have 4, 8"),
    "layers": (
        {"layers_to_transform": [0]}, "svd", {}, "svd: PEFT leaves model.layers.1.",
    ),
    "no density": ({}, "dare_ties", {"density": None}, "dare_ties needs a density"),
    "density": ({}, "cat", {"density": 0.5}, "cat keeps all values and has no density"),
    "rank": ({}, "ties", {"rank": 4}, "ties has no rank of its own"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tiny_llama_bias: Path, tmp_path: Path) -> None:
    options, how, changes, words = REFUSED[case]
    one = make_adapter(tiny_llama_bias, folder=tmp_path / "one", **options)
    two = make_adapter(tiny_llama_bias, folder=tmp_path / "two", seed=2)
    with pytest.raises(EdgetuneError) as caught:
        merge(tmp_path / "out", tiny_llama_bias, [one, two], combine=settings(how, **changes))
    assert words in caught.value.message
    assert caught.value.hint


def test_one_adapter_alone_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    one = make_adapter(tiny_llama, folder=tmp_path / "one")
    with pytest.raises(EdgetuneError, match="needs two adapters or more"):
        merge(tmp_path / "out", tiny_llama, [one], combine=settings("cat"))
