"""What the merged folder holds, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import edgetune.checkpoint.tensors as tensors_module
import edgetune.merge.layer as layer_module
from edgetune.checkpoint.folder import read_checkpoint
from edgetune.errors import StepFailedError
from tests.merge.merged import NF4_DOUBLE, merge, parity
from tests.tiny import build_base, build_four_bit, edit_tensors, make_adapter

pytestmark = pytest.mark.line

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"


def tree(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_untouched_tensors_are_copied_and_touched_ones_are_float32(
    tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", target_modules=["q_proj"])
    merge(tmp_path / "out", tiny_llama, [adapter])
    before, after = load_file(tiny_llama / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if "q_proj" in name:
            assert tensor.dtype == torch.float32
            assert not torch.equal(tensor, before[name].float())
        else:
            assert tensor.dtype == torch.bfloat16
            assert tensor.view(torch.int16).equal(before[name].view(torch.int16))
    with safe_open(tmp_path / "out" / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_config_and_side_files(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    copy_folder(tiny_llama, base)
    (base / "modeling_evil.py").write_text("raise SystemExit")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    out = tmp_path / "out"
    merge(out, base, [adapter])
    assert sorted(tree(out)) == sorted(
        [WEIGHTS, "config.json", "generation_config.json", "tokenizer.json",
         "tokenizer_config.json", "chat_template.jinja"]
    )  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (tiny_llama / name).read_bytes()
    before, after = (json.loads((p / "config.json").read_text()) for p in (tiny_llama, out))
    assert before.pop("dtype") == "bfloat16"
    assert after.pop("dtype") == "float32"
    assert before == after


def test_old_spelling_of_the_type_and_remote_code_leave_the_config(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    copy_folder(tiny_llama, base)
    edit_config(base, dtype=None, torch_dtype="bfloat16", auto_map={"AutoModel": "evil.Model"})
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    merge(tmp_path / "out", base, [adapter])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert not {"torch_dtype", "auto_map"} & config.keys()


def test_untied_config(tiny_llama_tied: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama_tied, folder=tmp_path / "a", target_modules=["lm_head"])
    merge(tmp_path / "out", tiny_llama_tied, [adapter])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    before, after = load_file(tiny_llama_tied / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert "lm_head.weight" not in before
    assert after["lm_head.weight"].dtype == torch.float32
    assert after["model.embed_tokens.weight"].equal(before["model.embed_tokens.weight"])


def test_zero_lora_gives_the_base_bit_for_bit(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", target_modules="all-linear")

    def without_effect(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in tensors.items()}

    edit_tensors(adapter / ADAPTER, without_effect)
    merge(tmp_path / "out", tiny_llama, [adapter])
    before, after = load_file(tiny_llama / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    for name in before:
        assert after[name].to(torch.bfloat16).equal(before[name]), name
        assert after[name].float().equal(before[name].float()), name


def test_full_fine_tune_is_copied(tiny_llama_sharded: Path, tmp_path: Path) -> None:
    facts = merge(tmp_path / "out", tiny_llama_sharded)
    assert facts["tensors_used"] == facts["tensors_total"] == facts["touched"] == 0
    assert facts["onto"] is None
    out, base = read_checkpoint(tmp_path / "out"), read_checkpoint(tiny_llama_sharded)
    assert out.tensors.keys() == base.tensors.keys()
    for name, entry in base.tensors.items():
        assert raw(base.path, entry) == raw(out.path, out.tensors[name])
    assert (out.path / "config.json").read_bytes() == (base.path / "config.json").read_bytes()


def test_stored_four_bit_base_becomes_plain(tiny_llama: Path, tmp_path: Path) -> None:
    base = build_four_bit(tiny_llama, tmp_path / "base", "nf4", True)
    facts = merge(tmp_path / "out", base)
    assert facts["touched"] == 14
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert parity(tmp_path / "out", base, [])[0] < 1e-5


def test_base_type_and_its_rounding(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    whole = merge(tmp_path / "whole", tiny_llama, [adapter])
    facts = merge(tmp_path / "out", tiny_llama, [adapter], merge_dtype="base")
    assert whole["rounding_max_abs"] is None
    exact, stored = load_file(tmp_path / "whole" / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    largest = max(float((exact[n].float() - stored[n].float()).abs().max()) for n in exact)
    assert facts["rounding_max_abs"] == largest > 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_base_type_of_a_four_bit_base(tiny_llama: Path, tmp_path: Path) -> None:
    base = build_four_bit(tiny_llama, tmp_path / "base", "nf4", False)
    merge(tmp_path / "out", base, merge_dtype="base")
    assert {t.dtype for t in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [False, True])
def test_stored_embedding_replaces_the_base_s(
    tied: bool, tiny_llama: Path, tiny_llama_tied: Path, tmp_path: Path
) -> None:
    base = tiny_llama_tied if tied else tiny_llama
    adapter = make_adapter(base, folder=tmp_path / "a", target_modules=["embed_tokens", "q_proj"])
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    edit_tensors(adapter / ADAPTER, lambda t: {**t, name: t[name] * 1.5})
    facts = merge(tmp_path / "out", base, [adapter])
    assert facts["tensors_used"] == facts["tensors_total"]
    difference, largest, _ = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-5 * max(1, largest)
    embedding = load_file(tmp_path / "out" / WEIGHTS)["model.embed_tokens.weight"]
    assert (embedding - load_file(base / WEIGHTS)["model.embed_tokens.weight"]).abs().max() > 0.05


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_saved_beside_the_adapter_replace_the_base_s(
    tied: bool, tiny_llama: Path, tiny_llama_tied: Path, tmp_path: Path
) -> None:
    base = tiny_llama_tied if tied else tiny_llama
    adapter = make_adapter(base, folder=tmp_path / "a", save={"save_embedding_layers": True})
    names = [f"base_model.model.{n}.weight" for n in ("model.embed_tokens", "lm_head")]
    edit_tensors(adapter / ADAPTER, lambda t: {**t, **{n: t[n] * 1.5 for n in names}})
    facts = merge(tmp_path / "out", base, [adapter])
    assert facts["tensors_used"] == facts["tensors_total"] == 14
    assert facts["untied"] is False
    difference, largest, _ = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-5 * max(1, largest)


def test_buffers_of_old_checkpoints_are_no_hindrance(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    copy_folder(tiny_llama, base)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(base / WEIGHTS, lambda t: {**t, name: torch.ones(8)})
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    merge(tmp_path / "out", base, [adapter])
    assert parity(tmp_path / "out", base, [adapter])[0] < 4e-5


def test_all_linear_as_a_word(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "a", target_modules="all-linear")
    merge(tmp_path / "one", tiny_llama, [adapter])
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    assert config["target_modules"] != "all-linear"
    file.write_text(json.dumps({**config, "target_modules": "all-linear"}))
    merge(tmp_path / "other", tiny_llama, [adapter])
    assert tree(tmp_path / "one") == tree(tmp_path / "other")


def test_warnings_are_facts(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    assert merge(tmp_path / "one", tiny_llama, [adapter])["warnings"] == []
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    config |= {"base_model_name_or_path": "some/other", "from_the_future": 3}
    file.write_text(json.dumps(config))
    name, unknown = merge(tmp_path / "other", tiny_llama, [adapter])["warnings"]
    assert "trained over 'some/other'" in name
    assert unknown.endswith("ignored: from_the_future")
    assert parity(tmp_path / "other", tiny_llama, [adapter])[0] < 4e-5


def test_shards_above_the_limit(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    merge(tmp_path / "one", tiny_llama, [adapter])
    write = tensors_module.write_checkpoint_weights
    monkeypatch.setattr(
        "edgetune.merge.merge.write_checkpoint_weights",
        lambda out, outputs, told: write(out, outputs, told, shard_bytes=100_000),
    )
    merge(tmp_path / "many", tiny_llama, [adapter])
    many = read_checkpoint(tmp_path / "many")
    shards = [f for f in many.files if f.startswith("model-")]
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    one = read_checkpoint(tmp_path / "one")
    assert {n: raw(many.path, e) for n, e in many.tensors.items()} == {
        n: raw(one.path, e) for n, e in one.tensors.items()
    }
    assert parity(tmp_path / "many", tiny_llama, [adapter])[0] < 4e-5


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_blocks_of_rows_change_nothing(
    kind: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ["embed_tokens", "lm_head", "q_proj", "down_proj"]
    adapter = make_adapter(tiny_llama, kind, folder=tmp_path / "a", target_modules=targets)
    merge(tmp_path / "whole", tiny_llama, [adapter], trained_as=NF4_DOUBLE)
    monkeypatch.setattr(tensors_module, "BLOCK_BYTES", 5 * 4 * 64)  # five rows of 64
    merge(tmp_path / "blocks", tiny_llama, [adapter], trained_as=NF4_DOUBLE)
    whole, blocks = (load_file(tmp_path / n / WEIGHTS) for n in ("whole", "blocks"))
    for name in whole:
        torch.testing.assert_close(blocks[name], whole[name], atol=1e-6, rtol=1e-6)


def test_a_layer_that_stays_on_the_meta_device_is_an_error(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PEFT's merge() then changes nothing and says nothing
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    original = layer_module._set

    def forgetful(holder: Any, leaf: str, value: Any) -> None:
        if value.device.type == "meta" or value.shape != (64, 4):  # lora_B of q_proj
            original(holder, leaf, value)

    monkeypatch.setattr(layer_module, "_set", forgetful)
    with pytest.raises(StepFailedError, match=r"lora_B.*got no values"):
        merge(tmp_path / "out", tiny_llama, [adapter])


@pytest.mark.line
def test_same_inputs_same_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    """In another process, with another hash seed, locale and time zone, by another path."""
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", target_modules="all-linear")
    merge(tmp_path / "one", tiny_llama, [adapter], trained_as=NF4_DOUBLE)
    elsewhere = tmp_path / "else where"
    copy_folder(tiny_llama, elsewhere / "base")
    copy_folder(adapter, elsewhere / "adapter")
    code = (
        "from pathlib import Path; from tests.merge.merged import *\n"
        f"p = Path({str(elsewhere)!r})\n"
        "merge(p / 'out', p / 'base', [p / 'adapter'], trained_as=NF4_DOUBLE)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert tree(tmp_path / "one") == tree(elsewhere / "out")


@pytest.mark.line
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    base = build_base(
        tmp_path / "base", tokenizer=False, hidden_size=512, intermediate_size=1536,
        num_hidden_layers=28,
    )  # fmt: skip
    make_adapter(base, folder=tmp_path / "adapter", target_modules="all-linear")
    code = (
        "from pathlib import Path; from tests.merge.merged import *\n"
        "import transformers.models.llama.modeling_llama, peft\n"
        "from edgetune.host import own_peak_rss_mb\n"
        f"p = Path({str(tmp_path)!r}); before = own_peak_rss_mb()\n"
        "merge(p / 'out', p / 'base', [p / 'adapter'])\n"
        "print(own_peak_rss_mb() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    written = (tmp_path / "out" / WEIGHTS).stat().st_size / 1e6
    assert written > 350
    assert float(run.stdout) < 0.6 * written


def raw(folder: Path, entry: Any) -> bytes:
    with (folder / entry.file).open("rb") as file:
        file.seek(entry.begin)
        return file.read(entry.nbytes)


def copy_folder(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {k: v for k, v in config.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(kept))
