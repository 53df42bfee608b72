"""The trained model comes whole, in float32, unmerged, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from edgetune.checkpoint.trained import load_base_alone, load_plain, load_trained_model
from edgetune.errors import InputRefusedError
from tests.tiny import build_four_bit, edit_tensors, logits, make_adapter

NF4 = {"type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}


def given(*folders: Path, weight: float = 1.0) -> list[dict[str, object]]:
    return [{"path": str(folder), "weight": weight} for folder in folders]


def test_float32_evaluation_unmerged(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "a", lora_dropout=0.5)
    for trained_as in (None, NF4):
        model = load_trained_model(tiny_llama, trained_as, given(adapter))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        assert any("lora_A" in name for name, _ in model.named_parameters())
        assert logits(model).equal(logits(model))  # no dropout


def test_weights_scale_each_delta(tiny_llama: Path, tmp_path: Path) -> None:
    one = make_adapter(tiny_llama, folder=tmp_path / "one", r=8, use_rslora=True)
    two = make_adapter(tiny_llama, folder=tmp_path / "two", r=2, seed=2)
    alone = logits(load_base_alone(tiny_llama, None, []))
    nothing = [*given(one, weight=0.0), *given(two, weight=0.0)]
    assert logits(load_trained_model(tiny_llama, None, nothing)).equal(alone)
    first = logits(load_trained_model(tiny_llama, None, given(one)))
    only = logits(load_trained_model(tiny_llama, None, [*given(one), *given(two, weight=0.0)]))
    torch.testing.assert_close(only, first, atol=1e-5, rtol=0)


def test_four_bit_base_differs_from_the_original(tiny_llama: Path, tmp_path: Path) -> None:
    plain, four_bit = load_base_alone(tiny_llama, None, []), load_base_alone(tiny_llama, NF4, [])
    assert (logits(plain) - logits(four_bit)).abs().max() > 0.05
    stored = build_four_bit(tiny_llama, tmp_path / "base", "nf4", True)
    assert logits(load_base_alone(stored, None, [])).equal(logits(four_bit))
    adapter = make_adapter(tiny_llama, folder=tmp_path / "a")
    over_original = load_trained_model(tiny_llama, NF4, given(adapter), onto="original")
    unquantized = load_trained_model(tiny_llama, None, given(adapter))
    assert logits(over_original).equal(logits(unquantized))


def test_four_bit_and_head_adapter_on_a_tied_base(tiny_llama_tied: Path) -> None:
    model = load_base_alone(tiny_llama_tied, NF4, [])
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: {n: v for n, v in t.items() if "1.mlp" not in n},
            "missing keys when PEFT loads",
        ),
        (
            lambda t: {**t, "base_model.model.x.lora_A.weight": torch.ones(1)},
            "unexpected keys when",
        ),
        (lambda t: {n: v[:2].clone() for n, v in t.items()}, "PEFT refuses it"),
    ],
)
def test_what_peft_only_warns_of_is_an_error(
    change: object, words: str, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "a")
    edit_tensors(adapter / "adapter_model.safetensors", change)
    with pytest.raises(InputRefusedError, match=words):
        load_trained_model(tiny_llama, None, given(adapter))


def test_adapter_on_the_wrong_base(tiny_llama: Path, tiny_phi3: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        tiny_llama, folder=tmp_path / "a", target_modules=["down_proj", "q_proj"]
    )
    with pytest.raises(InputRefusedError, match="keys when PEFT loads it"):
        load_trained_model(tiny_phi3, None, given(adapter))


def test_missing_weights_are_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    file = base / "model.safetensors"
    edit_tensors(file, lambda t: {n: v for n, v in t.items() if "norm" not in n})
    with pytest.raises(InputRefusedError, match="missing keys when transformers loads it"):
        load_plain(base)


def test_remote_code_is_never_run(tiny_llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (base / "config.json").write_text(json.dumps(config))
    assert type(load_plain(base)).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()
