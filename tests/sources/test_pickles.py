"""Pickled weights: refused, or read by a confined process as what they are; never run."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from edgetune.__main__ import run
from edgetune.checkpoint.adapter import read_adapter
from edgetune.checkpoint.folder import read_checkpoint
from edgetune.errors import InputRefusedError, MissingError
from edgetune.files import sha256_of_file
from edgetune.recipe import Recipe
from edgetune.sources import pickles
from edgetune.sources.pickles import adapter_from_pickle, checkpoint_from_pickle
from edgetune.sources.resolve import resolve
from tests.sources.hostile import HOSTILE, archive, laughs
from tests.sources.hub import cache
from tests.tiny import make_adapter

pytestmark = pytest.mark.line

BIN, SAFE = "adapter_model.bin", "adapter_model.safetensors"


def pickle_weights(folder: Path, pairs: dict[str, str]) -> None:
    """Each safetensors file as a pickle of another name."""
    import torch
    from safetensors.torch import load_file

    for safe, name in pairs.items():
        torch.save(load_file(folder / safe), folder / name)
        (folder / safe).unlink()


@pytest.fixture(scope="session")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with safetensors."""
    return make_adapter(tiny_llama, folder=tmp_path_factory.mktemp("a") / "tuned")


@pytest.fixture
def pickled(adapter: Path, tmp_path: Path) -> Path:
    """The same adapter, pickled."""
    folder = Path(shutil.copytree(adapter, tmp_path / "tuned"))
    pickle_weights(folder, {SAFE: BIN})
    return folder


def bytes_of(folder: Path, tensors: dict[str, Any]) -> dict[str, tuple[Any, bytes]]:
    found = {}
    for name, entry in tensors.items():
        data = (folder / entry.file).read_bytes()[entry.begin : entry.begin + entry.nbytes]
        found[name] = ((entry.dtype, entry.shape), data)
    return found


def test_an_adapter_is_what_it_was(
    adapter: Path, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, digests = adapter_from_pickle(pickled, tmp_path, "acme/tuned")
    original = read_adapter(adapter)
    assert bytes_of(found.path, found.tensors) == bytes_of(adapter, original.tensors)
    assert found.path.name == "tuned"
    assert digests.keys() == {"adapter_config.json", BIN}
    again, _ = adapter_from_pickle(pickled, tmp_path, "acme/tuned")
    assert (again.path / SAFE).read_bytes() == (found.path / SAFE).read_bytes()
    told = capsys.readouterr().err
    assert "no network, limited memory" in told
    assert not [p for p in tmp_path.rglob("*") if p.name in ("out", "log")]


def test_a_sharded_base_is_what_it_was(tiny_llama_sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama_sharded, tmp_path / "base"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = {
        file: file.replace("model", "pytorch_model").replace("safetensors", "bin")
        for file in set(index["weight_map"].values())
    }
    pickle_weights(folder, names)
    (folder / "model.safetensors.index.json").unlink()
    weight_map = {tensor: names[file] for tensor, file in index["weight_map"].items()}
    target = folder / "pytorch_model.bin.index.json"
    target.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputRefusedError, match="pickle files") as caught:
        read_checkpoint(folder)
    assert "--allow-pickle" in caught.value.hint
    found, digests = checkpoint_from_pickle(folder, tmp_path, "acme/tuned")
    original = read_checkpoint(tiny_llama_sharded)
    assert bytes_of(found.path, found.tensors) == bytes_of(tiny_llama_sharded, original.tensors)
    assert found.side_files == original.side_files
    assert digests.keys() == {*names.values(), target.name, "config.json", *original.side_files}
    target.write_text(json.dumps({"weight_map": {**weight_map, "x": "../x.bin"}}))
    with pytest.raises(InputRefusedError, match=r"'\.\./x\.bin' leads out of the folder"):
        checkpoint_from_pickle(folder, tmp_path, "acme/tuned")


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case: str, pickled: Path, tmp_path: Path) -> None:
    write, words = HOSTILE[case]
    mark = tmp_path / "mark"
    write(pickled / BIN, mark)
    before = sorted(p.name for p in pickled.iterdir())
    into = tmp_path / "into"
    into.mkdir()
    started = time.monotonic()
    with pytest.raises(InputRefusedError) as caught:
        adapter_from_pickle(pickled, into, "acme/tuned")
    assert words in caught.value.message
    assert caught.value.message.startswith(str(pickled / BIN))
    assert "\n" not in caught.value.message
    assert time.monotonic() - started < 120
    assert not mark.exists()
    assert not [p for p in into.rglob("*") if p.is_file()]
    assert before == sorted(p.name for p in pickled.iterdir())


def test_a_pickle_without_end_is_ended(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "_SECONDS", 1)
    archive(pickled / BIN, laughs(60))
    started = time.monotonic()
    with pytest.raises(InputRefusedError, match="had not ended after 1 seconds of processor time"):
        adapter_from_pickle(pickled, tmp_path, "acme/tuned")
    assert time.monotonic() - started < 120


def test_a_pipe_is_not_waited_for(pickled: Path, tmp_path: Path) -> None:
    (pickled / BIN).unlink()
    os.mkfifo(pickled / BIN)
    with pytest.raises(InputRefusedError, match=r"adapter_model\.bin: no such file"):
        adapter_from_pickle(pickled, tmp_path, "acme/tuned")


def reader(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another function in the reader's place: what a subverted one could do."""
    monkeypatch.setattr(pickles, "_FUNCTION", f"tests.sources.subverted:{script}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("links_out", "its reader left 'adapter_model.safetensors' behind"),
        ("writes_more", "its reader left 'adapter_config.json' behind"),
        ("writes_nonsense", "truncated"),
        ("connects", "its reader left its confinement"),
        ("says_nonsense", "its reader answered nonsense"),
        ("says_much", "its reader answered nonsense"),
        ("dies", "its reader died of it (signal 11)"),
        ("fails", "its reader failed (tests.sources.subverted: RuntimeError: no)"),
    ],
)
def test_a_subverted_reader_is_not_believed(
    script: str, words: str, pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader(script, monkeypatch)
    with pytest.raises(InputRefusedError) as caught:
        adapter_from_pickle(pickled, tmp_path, "acme/tuned")
    assert words in caught.value.message


@pytest.mark.parametrize("script", ["unconfined", "unlimited"])
def test_without_confinement_nothing_is_read(
    script: str, pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader(script, monkeypatch)
    lacks = {"unconfined": "no network", "unlimited": "limited memory"}[script]
    with pytest.raises(MissingError, match=f"here it lacks: {lacks}"):
        adapter_from_pickle(pickled, tmp_path, "acme/tuned")


def test_the_line_asks_for_the_flag(
    tiny_llama: Path, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["build", "-m", str(tiny_llama), "-a", str(pickled), "-o", str(out)]
    assert run([*line, "--plan"]) == 4
    told = capsys.readouterr().err
    assert "only adapter_model.bin, a pickle file, which can run code when read" in told
    assert "--allow-pickle" in told
    assert run([*line, "--plan", "--allow-pickle"]) == 0
    assert not out.exists()


@pytest.mark.slow
def test_the_line_merges_it_once(
    tiny_llama: Path, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, left = tmp_path / "out", tmp_path / "temporary"
    left.mkdir()
    line = ["build", "-m", str(tiny_llama), "-a", str(pickled), "-o", str(out), "--until", "merge"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(left))
        assert run([*line, "--allow-pickle", "--json"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)["builds"]
        assert not entry["steps"][0]["cached"]
        assert run([*line, "--allow-pickle", "--json"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)["builds"]
        assert entry["steps"][0]["cached"], "the key depends on the pickle, not on where it went"
    assert not list(left.iterdir())
    assert (Path(entry["steps"][0]["path"]) / "model.safetensors").is_file()


def test_hub_ids_stay_what_they_are(
    tiny_llama: Path, pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, commit = tmp_path / "hub", "1" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    pickle_weights(base, {"model.safetensors": "pytorch_model.bin"})
    cache(hub, "acme/tiny", commit, base, "main")
    cache(hub, "acme/lora", commit, pickled, "main")
    recipe = Recipe.model_validate(
        {"name": "x", "base": "acme/tiny", "adapters": ["acme/lora@main"], "base_before": None}
    )
    inputs, problems = resolve(recipe)
    assert inputs is None
    assert [("--allow-pickle" in p.hint) for p in problems] == [True, True]
    into = tmp_path / "into"
    into.mkdir()
    inputs, problems = resolve(recipe, into)
    assert not problems
    assert inputs is not None
    (adapter,) = inputs.adapters
    assert (adapter.origin.name, adapter.origin.commit) == ("acme/lora", commit)
    assert (inputs.base_origin.name, inputs.base_origin.commit) == ("acme/tiny", commit)
    assert adapter.adapter.path.name == "lora"
    assert inputs.base.path.name == "tiny"
    assert adapter.adapter.path.is_relative_to(into)
    assert adapter.digests.keys() == {"adapter_config.json", BIN}
    assert "pytorch_model.bin" in inputs.base_digests
    assert adapter.digests[BIN] == sha256_of_file(pickled / BIN)


def test_its_tokenizer_comes_along(tiny_llama: Path, pickled: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_llama / name, pickled / name)
    templates = pickled / "additional_chat_templates"
    templates.mkdir()
    (templates / "tools.jinja").write_text("x")
    expected = read_adapter(pickled, pickled=True)
    found, digests = adapter_from_pickle(pickled, tmp_path, "tuned")
    assert found.tokenizer_files == expected.tokenizer_files
    assert len(found.tokenizer_files) == 3
    assert digests.keys() == {*expected.files}
    for name in found.tokenizer_files:
        assert (found.path / name).read_bytes() == (pickled / name).read_bytes()


def test_inspect_says_what_it_is(pickled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(pickled), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["type"], facts["rank"]) == ("adapter", "LoRA", 4)
    assert facts["weights"] == BIN
    assert "--allow-pickle" in facts["problems"][0]
