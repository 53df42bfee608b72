"""Adapters over a base whose vocabulary was resized before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetune.checkpoint.adapter import read_adapter
from edgetune.checkpoint.combination import merge_warnings
from edgetune.checkpoint.folder import read_checkpoint
from edgetune.errors import InputRefusedError
from tests.merge.merged import NF4, merge, parity
from tests.tiny import edit_tensors

pytestmark = pytest.mark.line

ADAPTER = "adapter_model.safetensors"
ROWS = 300
BOTH = ["embed_tokens", "lm_head"]
TOKENS = [288, 289, 290, *range(0, 200, 5)]

# name: (LoraConfig's fields, whether a tied base is untied by it)
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "saved beside the adapter": ({}, False),
    "both saved modules": ({"modules_to_save": BOTH}, True),
    "a saved head": ({"modules_to_save": ["lm_head"]}, True),
    "a saved embedding": ({"modules_to_save": ["embed_tokens"]}, True),
    "tied saved embedding": (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False,
    ),
    "targeted": ({"target_modules": [*BOTH, "q_proj"]}, True),
    "targeted by DoRA": ({"target_modules": [*BOTH, "q_proj"], "use_dora": True}, True),
    "trained tokens": ({"trainable_token_indices": TOKENS}, False),
    "another type": ({"peft_type": "LOHA"}, False),
    "another type, saved modules": ({"peft_type": "LOHA", "modules_to_save": BOTH}, True),
}  # fmt: skip


def make_resized(
    base: Path, folder: Path, rows: int = ROWS, tokenizer: bool = True, **config: Any
) -> Path:
    """An adapter as training code with new tokens leaves it: PEFT saves the embeddings along."""
    from peft import LoHaConfig, LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(rows, mean_resizing=False)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    loha = config.pop("peft_type", None) == "LOHA"
    made = (LoHaConfig if loha else LoraConfig)(**{**settings, **config})
    peft = get_peft_model(model, made)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.12
    peft.save_pretrained(folder)
    if tokenizer:
        new = AutoTokenizer.from_pretrained(base)
        new.add_tokens(["<new0>", "<new1>", "<new2>"])
        new.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", CASES)
def test_resized(
    name: str, tied: bool, tiny_llama: Path, tiny_llama_tied: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    config, untied = CASES[name]
    base = tiny_llama_tied if tied else tiny_llama
    adapter = make_resized(base, tmp_path / "adapter", **config)
    told = merge(tmp_path / "out", base, [adapter])
    difference, largest, effect = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["tensors_used"] == told["tensors_total"]
    assert told["untied"] == (tied and untied)
    assert told["warnings"] == []
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["vocab_size"] == ROWS
    assert load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"].shape == (
        ROWS,
        64,
    )
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 268
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (adapter / file).read_bytes()
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_over_a_four_bit_base(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_resized(tiny_llama, tmp_path / "adapter", modules_to_save=BOTH)
    merge(tmp_path / "out", tiny_llama, [adapter], trained_as=NF4)
    difference, largest, _ = parity(tmp_path / "out", tiny_llama, [adapter], trained_as=NF4)
    assert difference <= 1e-5 * max(1.0, largest)


def test_a_smaller_vocabulary_without_a_tokenizer(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_resized(tiny_llama, tmp_path / "adapter", rows=270, tokenizer=False)
    told = merge(tmp_path / "out", tiny_llama, [adapter])
    difference, largest, _ = parity(tmp_path / "out", tiny_llama, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    (warning,) = told["warnings"]
    assert "changes the vocabulary to 270 and brings no tokenizer" in warning
    shipped, own = ((p / "tokenizer.json").read_bytes() for p in (tmp_path / "out", tiny_llama))
    assert shipped == own


def test_the_same_vocabulary_keeps_the_base_s_tokenizer(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_resized(tiny_llama, tmp_path / "adapter", rows=288)
    merge(tmp_path / "out", tiny_llama, [adapter])
    shipped, own = ((p / "tokenizer.json").read_bytes() for p in (tmp_path / "out", tiny_llama))
    assert shipped == own
    found = read_adapter(adapter)
    assert "tokenizer.json" in found.files
    assert merge_warnings(read_checkpoint(tiny_llama), [found]) == []


def test_one_embedding_alone_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_resized(tiny_llama, tmp_path / "adapter")
    edit_tensors(
        adapter / ADAPTER, lambda t: {n: v for n, v in t.items() if "embed_tokens" not in n}
    )
    with pytest.raises(InputRefusedError, match="a resized vocabulary needs both embeddings"):
        merge(tmp_path / "out", tiny_llama, [adapter])


def test_two_sizes_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_resized(tiny_llama, tmp_path / "adapter")
    name = "base_model.model.lm_head.weight"
    edit_tensors(adapter / ADAPTER, lambda t: {**t, name: t[name][:290].clone()})
    with pytest.raises(InputRefusedError) as caught:
        merge(tmp_path / "out", tiny_llama, [adapter])
    assert "lm_head.weight of 290 rows and model.embed_tokens.weight of 300" in caught.value.message


def test_a_second_copy_that_differs_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_resized(tiny_llama, tmp_path / "adapter", modules_to_save=BOTH)
    name = "base_model.model.lm_head.modules_to_save.weight"
    edit_tensors(adapter / ADAPTER, lambda t: {**t, name: t[name] * 2})
    with pytest.raises(InputRefusedError, match=r"modules_to_save\.weight is not the same as"):
        merge(tmp_path / "out", tiny_llama, [adapter])
