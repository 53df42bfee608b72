"""The folder that ships, from folders of the shapes that the steps before it leave."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.checksums import verify_checksums
from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.files import digests_of_folder, list_files, read_json
from edgetune.package import pack
from edgetune.package.manifest import open_strictly

MACHINE = {
    "arch": "aarch64", "os": "linux", "cpu_model": "a board", "instruction_sets": [],
    "generic": False,
}  # fmt: skip


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def write_checkpoint(folder: Path) -> Path:
    """The smallest checkpoint there is: one tensor of 64 bytes."""
    tensor = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    text = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    write(folder, config__json=json.dumps({"model_type": "llama", "vocab_size": 4}))
    data = len(text).to_bytes(8, "little") + text + bytes(64)
    (folder / "model.safetensors").write_bytes(data)
    return folder


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(pack, "_check_opens", lambda folder: None)
    # The graphs here are a few letters.
    weights = {"modules": [], "other_bytes": 3}
    monkeypatch.setattr(pack, "describe_weights", lambda folder: weights)
    graphs = {
        name: write(
            tmp_path / "steps" / name, model__onnx=name, model__onnx__data="data",
            genai_config__json="{}", step__json="the store's own",
        )
        for name in ("cpu-w8a16-rtn", "cpu-fp32")
    }  # fmt: skip
    write(tmp_path / "steps/reference/self_test", self_test__json="{}", items__jsonl="")
    write(tmp_path / "steps/reference", logprobs__npy="stays in the store")
    return {
        "name": "demo",
        "variants": [
            {"name": n, "graph": str(g), "provider": "CPUExecutionProvider", "device_kind": "cpu"}
            for n, g in graphs.items()
        ],
        "devices": {
            "pi": {
                "variant": "cpu-w8a16-rtn",
                "session": {"intra_op_num_threads": 4},
                "machine": MACHINE,
            },
            "this-machine": {"variant": "cpu-fp32", "session": None},
        },
        "self_test": str(tmp_path / "steps/reference/self_test"),
        "checkpoint": str(write_checkpoint(tmp_path / "merged")),
        "base_checkpoint": str(write_checkpoint(tmp_path / "base")),
        "lock": {"lock_version": 1, "base": {"name": "base"}},
        "tolerances": {"kl_mean": 0.05},
        "budgets": {},
        "require_on_device": False,
    }


def packed(arguments: dict[str, Any], out: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    return pack.package_step(arguments, out, lambda text: None)


def test_the_folder_that_ships(arguments: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    facts = packed(arguments, out)
    flat = ["genai_config.json", "model.onnx", "model.onnx.data"]
    assert list_files(out) == sorted(
        [
            *(f"cpu-fp32/{name}" for name in flat),
            *(f"cpu-w8a16-rtn/{name}" for name in flat),
            "SHA256SUMS",
            "devices/pi.json",
            "edgetune.lock",
            "manifest.json",
            "self_test/items.jsonl",
            "self_test/limits.json",
            "self_test/run.pyz",
            "self_test/self_test.json",
        ]
    )
    assert facts["package_digest"] == verify_checksums(out)
    assert facts["package_bytes"] == sum((out / name).stat().st_size for name in list_files(out))
    assert facts["graph_bytes"] == {"cpu-fp32": 12, "cpu-w8a16-rtn": 17}
    assert set(open_strictly(out)) == {"cpu-fp32", "cpu-w8a16-rtn"}


def test_devices_limits_and_lock(arguments: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    packed(arguments, out)
    session = {"intra_op_num_threads": 4}
    entry = {"variant": "cpu-w8a16-rtn", "session": session, "machine": MACHINE}
    assert read_json(out / "devices/pi.json") == entry
    limits = read_json(out / "self_test/limits.json")
    assert limits["tolerances"] == {"kl_mean": 0.05}
    assert limits["base_bytes"] == (tmp_path / "base/model.safetensors").stat().st_size
    # One tensor of 4 × 4: a full fine-tune trains it all.
    assert limits["parameters"] == {"trained": 16, "total": 16}
    assert limits["weights"]["cpu-w8a16-rtn"] == {"modules": [], "other_bytes": 3}
    packed({**arguments, "trained_parameters": 12}, tmp_path / "adapted")
    limits = read_json(tmp_path / "adapted/self_test/limits.json")
    assert limits["parameters"] == {"trained": 12, "total": 16}
    lock = read_json(out / "edgetune.lock")
    assert set(lock["package"]["variants"]) == {"cpu-fp32", "cpu-w8a16-rtn"}
    assert str(tmp_path) not in (out / "edgetune.lock").read_text()


def test_same_inputs_same_bytes_elsewhere(arguments: dict[str, Any], tmp_path: Path) -> None:
    packed(arguments, tmp_path / "one")
    backwards = {**arguments, "variants": arguments["variants"][::-1]}
    backwards["devices"] = dict(reversed(arguments["devices"].items()))
    packed(backwards, tmp_path / "elsewhere" / "two")
    assert digests_of_folder(tmp_path / "one") == digests_of_folder(tmp_path / "elsewhere/two")


def test_modes_and_links(arguments: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    packed(arguments, out)
    for name in list_files(out):
        status = (out / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o644, 1)


def test_a_link_in_a_graph_is_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    graph = Path(arguments["variants"][0]["graph"])
    (graph / "linked").symlink_to("model.onnx")
    with pytest.raises(InputRefusedError, match="a link or special file"):
        packed(arguments, tmp_path / "out")


def _path_in_lock(arguments: dict[str, Any]) -> None:
    arguments["lock"]["base"]["name"] = "/home/me/base"


def _variant_of_nobody(arguments: dict[str, Any]) -> None:
    arguments["devices"]["pi"]["variant"] = "cpu-w3"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_path_in_lock, "would carry the absolute path '/home/me/base'"),
        (_variant_of_nobody, "the device pi is to run cpu-w3, which is not packed"),
    ],
)
def test_what_cannot_ship_is_refused(
    arguments: dict[str, Any], tmp_path: Path, spoil: Callable[[dict[str, Any]], None], words: str
) -> None:
    spoil(arguments)
    with pytest.raises((StepFailedError, InputRefusedError), match=words):
        packed(arguments, tmp_path / "out")


def test_a_variant_that_genai_does_not_open_is_refused(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(pack, "describe_weights", lambda folder: {})
    with pytest.raises(StepFailedError, match="onnxruntime-genai does not open the variant"):
        packed(arguments, tmp_path / "out")
