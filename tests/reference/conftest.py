"""A tiny Phi-3, a LoRA over it, and PEFT's own merge of the two: what the reference compares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Arguments = dict[str, Any]
CHATS = [
    ("hi there", "the answer"),
    ("is it in there or here?", "in"),
    ("a", "neither the one nor the other"),
    ("Grüße 😀", "ab"),
]


@pytest.fixture(scope="session")
def lora(tiny_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA over the tiny Phi-3."""
    from tests.tiny import make_adapter

    folder = tmp_path_factory.mktemp("adapters") / "lora"
    return make_adapter(tiny_phi3, folder=folder, target_modules=["qkv_proj", "down_proj"])


@pytest.fixture(scope="session")
def merged(tiny_phi3: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA merged by PEFT in float32, with the base's tokenizer."""
    return merge(tiny_phi3, lora, tmp_path_factory.mktemp("merged") / "lora")


@pytest.fixture(scope="session")
def taught(tiny_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full fine-tune of the tiny Phi-3 that knows the answers of `CHATS`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("taught") / "taught"
    model = AutoModelForCausalLM.from_pretrained(tiny_phi3, dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(tiny_phi3)
    rows = []
    for question, answer in CHATS:
        text = f"<|user|>{question}<|end|><|assistant|>{answer}<|end|>"
        rows.append(torch.tensor([tokenizer.encode(text, add_special_tokens=False)]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        for row in rows:
            model(input_ids=row, labels=row).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_phi3: Path) -> Any:
    """The tiny models' tokenizer."""
    from edgetune.reference.tokenizer import load_tokenizer

    return load_tokenizer(tiny_phi3)


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluation data: four short chats."""
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl", CHATS)


@pytest.fixture
def arguments(tiny_phi3: Path, lora: Path, merged: Path, chats: Path) -> Callable[..., Arguments]:
    """The step's arguments for the fixtures above, with changes."""

    def make(
        checkpoint: Path | str = merged, onto: str = "dequantized", **changes: Any
    ) -> Arguments:
        return {
            "base": {"path": str(tiny_phi3), "trained_as": None},
            "base_before": None,
            "adapters": [{"path": str(lora), "weight": 1.0}],
            "merge_dtype": "float32",
            "checkpoints": {onto: str(checkpoint)},
            "task": "text-generation",
            "evaluation": str(chats),
            "self_test_data": "evaluation",
            "seed": 0,
            "threads": 2,
            "layered": False,
            **changes,
        }

    return make


def merge(base: Path, adapter: Path, folder: Path) -> Path:
    """PEFT's merge of `adapter` onto `base` as it is stored, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def write_chats(path: Path, chats: list[tuple[str, str]]) -> Path:
    """Chats of one question and one answer as JSON lines."""
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in chats
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
