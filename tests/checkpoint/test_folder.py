"""A checkpoint folder: whole, in its own folder, and what it says about itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.checkpoint.folder import INDEX_FILE, read_checkpoint
from edgetune.errors import InputRefusedError
from tests.tiny import build_four_bit, edit_tensors


def change_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def index(change: Callable[[dict[str, str]], dict[str, str]]) -> Callable[[Path], None]:
    """Change the weight map of the index."""
    return lambda folder: change_json(
        folder / INDEX_FILE, lambda found: {**found, "weight_map": change(found["weight_map"])}
    )


def test_facts(tiny_llama: Path) -> None:
    found = read_checkpoint(tiny_llama)
    assert found.model_type == "llama"
    assert found.files == (
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    )  # fmt: skip
    assert found.weight_bytes == (tiny_llama / "model.safetensors").stat().st_size
    assert found.tensors["model.embed_tokens.weight"].shape == (288, 64)
    assert found.generation["eos_token_id"] == 259
    assert found.quantization is None
    assert not found.tied
    assert not found.packed


def test_sharded(tiny_llama: Path, tiny_llama_sharded: Path) -> None:
    found = read_checkpoint(tiny_llama_sharded)
    assert found.tensors.keys() == read_checkpoint(tiny_llama).tensors.keys()
    assert INDEX_FILE in found.files
    assert len([f for f in found.files if f.startswith("model-")]) == 4


def test_four_bit(tiny_llama: Path, tmp_path: Path) -> None:
    found = read_checkpoint(build_four_bit(tiny_llama, tmp_path / "base", "fp4", True))
    assert found.quantization is not None
    assert found.quantization["bnb_4bit_quant_type"] == "fp4"
    assert "model.layers.1.mlp.up_proj" in found.packed
    assert "lm_head" not in found.packed


def test_tied(tiny_llama_tied: Path, tiny_llama: Path, tmp_path: Path) -> None:
    assert read_checkpoint(tiny_llama_tied).tied
    # both stored: transformers ties them only where they are equal
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    change_json(base / "config.json", lambda c: {**c, "tie_word_embeddings": True})
    assert not read_checkpoint(base).tied
    name = "model.embed_tokens.weight"
    weights = base / "model.safetensors"
    edit_tensors(weights, lambda t: {**t, "lm_head.weight": t[name].clone()})
    assert read_checkpoint(base).tied
    edit_tensors(weights, lambda t: {n: v for n, v in t.items() if n != name})
    assert read_checkpoint(base).tied_source == "lm_head.weight"


def test_the_hub_s_cache(tiny_llama_sharded: Path, tmp_path: Path) -> None:
    """Snapshots are links to blobs beside them."""
    root = tmp_path / "models--tiny--llama"
    blobs, snapshot = root / "blobs", root / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_llama_sharded.iterdir())):
        shutil.copy(file, blobs / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert (
        read_checkpoint(snapshot).tensors.keys()
        == read_checkpoint(tiny_llama_sharded).tensors.keys()
    )


SHARD = "model-00002-of-00004.safetensors"


def outside(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to("../elsewhere")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "config no json": (lambda f: (f / "config.json").write_text("x"), "json: not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "shard gone": (lambda f: (f / SHARD).unlink(), f"{SHARD}: no such file"),
    "shard cut": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-1]), "truncated"),
    "index no json": (lambda f: (f / INDEX_FILE).write_text("{"), "not valid JSON"),
    "no map": (lambda f: (f / INDEX_FILE).write_text("{}"), "no weight_map"),
    "tensor gone": (
        index(lambda m: {**m, "model.layers.7.x": SHARD}),
        f"tensor 'model.layers.7.x' is not in {SHARD}",
    ),
    "up": (index(lambda m: {**m, "x": "../x.safetensors"}), "'../x.safetensors' leads out of the"),
    "absolute": (index(lambda m: {**m, "x": "/tmp/x.safetensors"}), "leads out of the folder"),
    "pickle shard": (index(lambda m: {**m, "x": "x.bin"}), "'x.bin' is not a safetensors file"),
    "number": (index(lambda m: {**m, "x": 3}), "3 is not a safetensors file"),  # type: ignore[dict-item]
    "shard outside": (lambda f: outside(f, SHARD), f"'{SHARD}' leads out of the folder"),
    "config outside": (lambda f: outside(f, "config.json"), "'config.json' leads out of the"),
    "tokenizer outside": (lambda f: outside(f, "tokenizer.json"), "'tokenizer.json' leads out"),
    "twice": (
        lambda f: edit_tensors(f / SHARD, lambda t: {**t, "model.norm.weight": t[min(t)] + 1}),
        "tensor 'model.norm.weight' is stored twice",
    ),
    "quantization": (
        lambda f: change_json(f / "config.json", lambda c: {**c, "quantization_config": 4}),
        "quantization_config is 4, not a mapping",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken(case: str, tiny_llama_sharded: Path, tmp_path: Path) -> None:
    change, words = BROKEN[case]
    base = Path(shutil.copytree(tiny_llama_sharded, tmp_path / "base"))
    change(base)
    with pytest.raises(InputRefusedError) as caught:
        read_checkpoint(base)
    assert words in caught.value.message
    assert caught.value.hint


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="not a folder"):
        read_checkpoint(tmp_path / "absent")


def test_dangling_link(tiny_llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to("gone")
    with pytest.raises(InputRefusedError, match=r"model\.safetensors: no such file"):
        read_checkpoint(base)
