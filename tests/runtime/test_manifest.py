"""What is a package, and what is refused as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError, UsageError
from edgetune.files import dump_json
from edgetune.runtime.manifest import choose_variant, read_manifest


def _package(folder: Path, **changes: Any) -> Path:
    """A package of two variants without graphs."""
    variants = {}
    for name in ("cpu-fp32", "cpu-w8a16-rtn"):
        (folder / name).mkdir(parents=True)
        (folder / name / "genai_config.json").write_text("{}")
        variants[name] = {"variant_directory": name, "ep": "CPUExecutionProvider", "device": "cpu"}
    devices = {"this-machine": {"variant": "cpu-fp32"}, "board": {"variant": "cpu-w8a16-rtn"}}
    manifest = {
        "schema_version": "1.0",
        "package_name": "demo",
        "components": {"model": {"variants": variants}},
        "additional_metadata": {"edgetune": {"devices": devices}},
        **changes,
    }
    (folder / "manifest.json").write_text(dump_json(manifest))
    (folder / "edgetune.lock").write_text("{}")
    (folder / "SHA256SUMS").write_text("")
    (folder / "devices").mkdir()
    session = {"variant": "cpu-w8a16-rtn", "session": {"intra_op_num_threads": 3}}
    (folder / "devices" / "board.json").write_text(json.dumps(session))
    return folder


def test_variants_and_devices_are_read(tmp_path: Path) -> None:
    manifest = read_manifest(_package(tmp_path / "p"), verify=False)
    assert manifest.name == "demo"
    assert list(manifest.variants) == ["cpu-fp32", "cpu-w8a16-rtn"]
    assert manifest.devices["board"]["session"] == {"intra_op_num_threads": 3}
    assert manifest.devices["this-machine"] == {
        "variant": "cpu-fp32",
        "session": None,
        "machine": None,
    }
    assert choose_variant(manifest, None, "board").name == "cpu-w8a16-rtn"
    assert choose_variant(manifest, "cpu-fp32", "board").name == "cpu-fp32"


def test_a_choice_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    manifest = read_manifest(_package(tmp_path / "p"), verify=False)
    with pytest.raises(UsageError, match="has the variants cpu-fp32, cpu-w8a16-rtn"):
        choose_variant(manifest, None, None)
    with pytest.raises(UsageError, match="no device called 'pi'") as caught:
        choose_variant(manifest, None, "pi")
    assert caught.value.hint == "its devices: board, this-machine"
    with pytest.raises(UsageError, match="no variant called 'gpu'"):
        choose_variant(manifest, "gpu", None)


@pytest.mark.parametrize("missing", ["manifest.json", "edgetune.lock", "SHA256SUMS"])
def test_a_folder_that_lacks_a_part_is_no_package(tmp_path: Path, missing: str) -> None:
    (_package(tmp_path / "p") / missing).unlink()
    with pytest.raises(InputRefusedError, match=f"not a package of edgetune, it has no {missing}"):
        read_manifest(tmp_path / "p", verify=False)
    with pytest.raises(InputRefusedError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": "2.0"}, "schema_version '2.0'"),
        ({"components": {}}, "0 components"),
        ({"components": {"a": {}, "b": {}}}, "2 components"),
        ({"components": []}, "components is not an object"),
        ({"components": {"model": {"variants": {}}}}, "no variant in it"),
        ({"components": {"model": {"variants": {"x": {}}}}}, "variant 'x' has no folder"),
        (
            {"components": {"model": {"variants": {"x": {"variant_directory": "../y"}}}}},
            "leads out of",
        ),
        (
            {"additional_metadata": {"edgetune": {"devices": {"pi": {"variant": "gone"}}}}},
            "device 'pi' names the variant 'gone'",
        ),
    ],
)
def test_an_unfit_manifest_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    _package(tmp_path / "p", **changes)
    with pytest.raises(InputRefusedError, match=message):
        read_manifest(tmp_path / "p", verify=False)
