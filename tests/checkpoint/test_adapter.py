"""An adapter folder: what it holds, and whether it fits a base by names and shapes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgetune.checkpoint.adapter import base_shape, count_trained, read_adapter, split_name
from edgetune.checkpoint.adapter_fields import HARMLESS, MODIFY_BASE, REFUSED, USED, refusal
from edgetune.checkpoint.fit import fit_problems, refusal_of
from edgetune.checkpoint.folder import read_checkpoint
from edgetune.errors import INPUT_REFUSED, InputRefusedError
from tests.tiny import build_four_bit, edit_tensors, make_adapter


def test_facts(tiny_llama: Path, tmp_path: Path) -> None:
    found = read_adapter(make_adapter(tiny_llama, "dora", folder=tmp_path / "a", r=3, lora_alpha=5))
    assert (found.peft_type, found.use_dora, found.rank, found.alpha) == ("LORA", True, 3, 5)
    assert found.base_name == str(tiny_llama)
    assert found.files == ("adapter_config.json", "adapter_model.safetensors")
    assert len(found.tensors) == 18
    assert refusal_of(found) is None


def test_what_was_trained_is_counted_without_copies_of_what_was_frozen(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_adapter(tiny_llama, "lora", folder=tmp_path / "a", r=3)
    found = count_trained(read_adapter(folder))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
    assert found == adapted.get_nb_trainable_parameters()[0] > 0


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("lora", {"target_modules": "all-linear"}),
        ("dora", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
        ("lora", {"lora_bias": True, "bias": "all", "rank_pattern": {"layers.0.*q_proj": 7}}),
        ("lora", {"modules_to_save": ["lm_head", "input_layernorm"]}),
    ],
)
def test_fits_its_base(
    kind: str, settings: dict[str, object], tiny_llama_bias: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama_bias, kind, folder=tmp_path / "a", **settings)
    assert fit_problems(read_adapter(adapter), read_checkpoint(tiny_llama_bias)) == []


def test_fits_a_four_bit_base_and_a_tied_head(
    tiny_llama: Path, tiny_llama_tied: Path, tmp_path: Path
) -> None:
    adapter = read_adapter(make_adapter(tiny_llama, folder=tmp_path / "a"))
    base = read_checkpoint(build_four_bit(tiny_llama, tmp_path / "base", "nf4", True))
    assert fit_problems(adapter, base) == []
    assert base_shape(base, "model.layers.0.mlp.down_proj.weight") == (64, 128)
    head = make_adapter(tiny_llama_tied, folder=tmp_path / "b", target_modules=["lm_head"])
    assert fit_problems(read_adapter(head), read_checkpoint(tiny_llama_tied)) == []


def test_does_not_fit(tiny_llama: Path, tiny_phi3: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama, folder=tmp_path / "a")
    (problem,) = fit_problems(read_adapter(folder), read_checkpoint(tiny_phi3))
    assert problem.exit_code == INPUT_REFUSED
    assert "not a module of this base: " in problem.message
    assert "(and 7 more)" in problem.message  # down_proj is in both families
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    edit_tensors(folder / "adapter_model.safetensors", lambda t: {**t, name: t[name][:60].clone()})
    (problem,) = fit_problems(read_adapter(folder), read_checkpoint(tiny_llama))
    assert f"{name} is [60, 4], this base takes [64, 4]" in problem.message


def test_no_tensors(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama, folder=tmp_path / "a")
    edit_tensors(folder / "adapter_model.safetensors", lambda t: {})
    (problem,) = fit_problems(read_adapter(folder), read_checkpoint(tiny_llama))
    assert "no tensors" in problem.message


def test_names_the_folder_that_was_meant(tiny_llama: Path, tmp_path: Path) -> None:
    make_adapter(tiny_llama, folder=tmp_path / "a" / "other")
    with pytest.raises(InputRefusedError) as caught:
        read_adapter(tmp_path / "a")
    assert "no adapter_config.json" in caught.value.message
    assert caught.value.hint == f"did you mean {tmp_path / 'a' / 'other'}?"


def test_pickle_has_a_way_out(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama, folder=tmp_path / "a")
    weights = folder / "adapter_model.bin"
    (folder / "adapter_model.safetensors").rename(weights)
    with pytest.raises(InputRefusedError, match="a safetensors file under another name"):
        read_adapter(folder)
    weights.write_bytes(b"PK\x03\x04")
    with pytest.raises(InputRefusedError, match="pickle") as caught:
        read_adapter(folder)
    assert "--allow-pickle" in caught.value.hint
    assert "save_pretrained" in caught.value.hint
    assert read_adapter(folder, pickled=True).tensors == {}


def test_other_types_can_be_inspected(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_adapter(tiny_llama, folder=tmp_path / "a"), tmp_path / "b"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    found = read_adapter(folder)
    assert found.peft_type == "IA3"
    assert refusal_of(found) is None
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "POLY"}))
    assert "peft_type POLY (Poly): a router mixes" in (refusal_of(read_adapter(folder)) or "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
         ("model.layers.0.mlp.up_proj", "lora_A.weight")),
        ("base_model.model.model.embed_tokens.lora_embedding_B",
         ("model.embed_tokens", "lora_embedding_B")),
        ("base_model.model.lm_head.lora_magnitude_vector", ("lm_head", "lora_magnitude_vector")),
        ("base_model.model.lm_head.weight", ("lm_head.weight", "")),
        ("base_model.model.lm_head.base_layer.weight", ("lm_head.weight", "")),
        ("base_model.model.model.layers.0.mlp.up_proj.base_layer.bias",
         ("model.layers.0.mlp.up_proj.bias", "")),
    ],
)  # fmt: skip
def test_split_name(name: str, expected: tuple[str, str]) -> None:
    assert split_name(name) == expected


def test_every_field_of_peft_is_known() -> None:
    """A new field in LoraConfig must be judged here before its adapters are taken."""
    import dataclasses

    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields == USED | HARMLESS | REFUSED.keys()
    assert not USED & HARMLESS
    assert not (USED | HARMLESS) & REFUSED.keys()


@pytest.mark.parametrize("field", REFUSED)
def test_refused_fields(field: str) -> None:
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", field: None}
    assert refusal(config) is None
    reason, hint = refusal({**config, field: [1]}) or ("", "")
    assert reason == f"{field}: {REFUSED[field]}"
    assert hint


@pytest.mark.parametrize("init", [*MODIFY_BASE, "pissa_niter_4", "PiSSA"])
def test_initializations_that_modify_the_base(init: str) -> None:
    reason, hint = refusal({"peft_type": "LORA", "init_lora_weights": init}) or ("", "")
    assert f"init_lora_weights {init!r} moved a part of the base's weights" in reason
    assert "path_initial_model_for_weight_conversion" in hint


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", None])
def test_initializations_that_leave_the_base_alone(init: object) -> None:
    assert refusal({"peft_type": "LORA", "init_lora_weights": init}) is None
