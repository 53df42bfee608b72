"""LoRA's options that make another layer, other rows, or another shape of the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetune.errors import InputRefusedError
from tests.merge.merged import NF4, merge, parity
from tests.tiny import edit_tensors, make_adapter

pytestmark = pytest.mark.line

ADAPTER = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
TOKENS = list(range(0, 250, 3))
BOTH = ["embed_tokens", "lm_head"]
Config = dict[str, Any]


def variant(name: str) -> Config:
    """The config of a variant; PEFT's classes are imported here only."""
    import peft

    return {
        "KaSA": {"kasa_config": peft.KasaConfig()},
        "VeLoRA": {"velora_config": peft.VeloraConfig()},
        "MonteCLoRA": {"monteclora_config": peft.MontecloraConfig()},
        "block-diagonal": {
            "use_bdlora": peft.BdLoraConfig(
                target_modules_bd_a=["down_proj"],
                target_modules_bd_b=["q_proj", "v_proj"],
                nblocks=2,
            )
        },
        "MiCA": {"init_lora_weights": "mica"},
    }[name]


@pytest.mark.parametrize("name", ["KaSA", "VeLoRA", "MonteCLoRA", "block-diagonal", "MiCA"])
def test_variants(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", **variant(name))
    assert_merged(tmp_path, tiny_llama, adapter)


# name: (LoraConfig's fields, whether a tied base stays tied)
OPTIONS: dict[str, tuple[Config, bool]] = {
    "tokens": ({"trainable_token_indices": TOKENS}, True),
    "tokens of both": (
        {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [1, 5]}}, False,
    ),
    "tokens and dora": ({"trainable_token_indices": TOKENS, "use_dora": True}, True),
    "tied lora": (
        {"ensure_weight_tying": True, "target_modules": ["embed_tokens", "q_proj"]}, True,
    ),
    "tied lora on both": (
        {"ensure_weight_tying": True, "target_modules": [*BOTH, "q_proj"]}, True,
    ),
    "tied saved": ({"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]}, True),
    "tied saved both": ({"ensure_weight_tying": True, "modules_to_save": BOTH}, True),
    "tied tokens": ({"ensure_weight_tying": True, "trainable_token_indices": TOKENS}, True),
    "expressions": (
        {"target_modules": r".*\.(q_proj|down_proj)", "exclude_modules": r".*layers\.0\.mlp.*"},
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, tied: bool, tiny_llama: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    config, stays = OPTIONS[name]
    base = tiny_qwen2 if tied else tiny_llama
    adapter = make_adapter(base, folder=tmp_path / "adapter", **config)
    with_noise(adapter)
    told = assert_merged(tmp_path, base, adapter)
    assert told["untied"] == (tied and not stays)
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert ("lm_head.weight" in stored) == (not tied or not stays)


def test_trained_tokens_over_a_four_bit_base_in_blocks(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgetune.checkpoint.tensors as tensors_module

    adapter = make_adapter(tiny_llama, folder=tmp_path / "a", trainable_token_indices=TOKENS)
    with_noise(adapter)
    merge(tmp_path / "whole", tiny_llama, [adapter], trained_as=NF4)
    monkeypatch.setattr(tensors_module, "BLOCK_BYTES", 5 * 4 * 64)  # five rows of 64
    merge(tmp_path / "blocks", tiny_llama, [adapter], trained_as=NF4)
    one, other = (load_file(tmp_path / n / WEIGHTS) for n in ("whole", "blocks"))
    rows = one["model.embed_tokens.weight"]
    assert rows.equal(other["model.embed_tokens.weight"])
    trained = load_file(adapter / ADAPTER)[
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    ]
    assert rows[TOKENS].equal(trained)
    before = load_file(tiny_llama / WEIGHTS)["model.embed_tokens.weight"].float()
    others = [n for n in range(288) if n not in TOKENS]
    assert rows[others].equal(before[others])


def test_replicated_layers(tiny_llama: Path, tmp_path: Path) -> None:
    layers = [[0, 2], [1, 2], [0, 2]]
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", layer_replication=layers)
    assert_merged(tmp_path, tiny_llama, adapter)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 5
    stored, before = (load_file(p / WEIGHTS) for p in (tmp_path / "out", tiny_llama))
    for new, old in enumerate([0, 1, 1, 0, 1]):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert stored[name.format(new)].equal(before[name.format(old)])


def test_replicated_layers_with_types(tiny_qwen2: Path, tmp_path: Path) -> None:
    # PEFT itself cannot run them: the config lists a type for each layer
    adapter = make_adapter(tiny_qwen2, folder=tmp_path / "adapter", layer_replication=[[0, 2]])
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"layer_replication": [[0, 2], [0, 2]]}
    file.write_text(json.dumps(config))
    with pytest.raises(InputRefusedError, match="layer_replication: PEFT repeats layers without"):
        merge(tmp_path / "out", tiny_qwen2, [adapter])


def test_ranks_that_adalora_left(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import AdaLoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    config = AdaLoraConfig(
        init_r=6, target_r=3, total_step=10, target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.3
    kept = {"q_proj": [True, False, True, True, False, True], "down_proj": [False, True] * 3}
    peft.peft_config["default"].rank_pattern = {
        f"{name}.lora_E": kept[name.rpartition(".")[2]]
        for name, module in peft.base_model.model.named_modules()
        if hasattr(module, "lora_E")
    }
    peft.save_pretrained(tmp_path / "adapter")
    shapes = {t.shape[0] for n, t in load_file(tmp_path / "adapter" / ADAPTER).items() if "_A" in n}
    assert shapes == {3, 4}
    assert_merged(tmp_path, tiny_llama, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([3, -1], "are not different numbers from 0 to 287"),
        ([3, 3], "are not different numbers from 0 to 287"),
        ([3, 288], "are not different numbers|PEFT refuses it"),
        ("all", "trainable_token_indices is 'all', not a list of numbers"),
        ([3], "trainable_tokens_delta is [2, 64], this base takes [1, 64]"),
    ],
)
def test_token_indices_that_are_none(
    indices: Any, words: str, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "a", trainable_token_indices=[3, 4])
    file = adapter / "adapter_config.json"
    changed = json.loads(file.read_text()) | {"trainable_token_indices": indices}
    file.write_text(json.dumps(changed))
    with pytest.raises(InputRefusedError) as caught:
        merge(tmp_path / "out", tiny_llama, [adapter])
    assert any(part in caught.value.message for part in words.split("|"))


def test_tokens_and_an_adapter_on_one_embedding(tiny_qwen2: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        tiny_qwen2, folder=tmp_path / "a", trainable_token_indices=TOKENS,
        target_modules=["q_proj", "lm_head"],
    )  # fmt: skip
    with pytest.raises(InputRefusedError) as caught:
        merge(tmp_path / "out", tiny_qwen2, [adapter])
    # PEFT's own words
    assert "trainable_token_indices cannot be applied to modules of type" in caught.value.message


def test_a_tied_head_that_is_not_its_embedding_s(tiny_qwen2: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        tiny_qwen2, folder=tmp_path / "a", ensure_weight_tying=True, target_modules=BOTH
    )
    name = "base_model.model.lm_head.lora_A.weight"
    edit_tensors(adapter / ADAPTER, lambda t: {**t, name: t[name] * 2})
    with pytest.raises(InputRefusedError, match="is not the embedding's adapter transposed"):
        merge(tmp_path / "out", tiny_qwen2, [adapter])


def with_noise(adapter: Path) -> None:
    """Trained tokens start as the base's rows: move them (and their copy) away."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        torch.manual_seed(5)
        noise: dict[Any, Any] = {}
        for name, tensor in tensors.items():
            if name.endswith("trainable_tokens_delta"):
                shift = noise.setdefault(tensor.shape, torch.randn_like(tensor) * 0.2)
                tensors[name] = tensor + shift
        return tensors

    edit_tensors(adapter / ADAPTER, change)


def assert_merged(tmp_path: Path, base: Path, adapter: Path) -> dict[str, Any]:
    told = merge(tmp_path / "out", base, [adapter])
    difference, largest, effect = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["tensors_used"] == told["tensors_total"] > 0
    return told
