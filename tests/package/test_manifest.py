"""The manifest, and what ONNX Runtime and onnxruntime-genai would refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.package.manifest import check_reopened, make_manifest, open_strictly

VARIANTS = [
    {"name": "cpu-w8a16-rtn", "provider": "CPUExecutionProvider", "device_kind": "cpu"},
    {"name": "cpu-fp32", "provider": "CPUExecutionProvider", "device_kind": "cpu"},
]


def write_package(folder: Path, manifest: dict[str, Any]) -> Path:
    for variant in VARIANTS:
        (folder / variant["name"]).mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def manifest() -> dict[str, Any]:
    devices = {"pi": "cpu-fp32", "box": "cpu-w8a16-rtn"}
    return make_manifest("demo", VARIANTS, devices, "0.1.0", {"onnxruntime": "1.26.0"})


def test_order_of_variants_and_devices_does_not_matter() -> None:
    made = manifest()
    assert list(made["components"]["model"]["variants"]) == ["cpu-fp32", "cpu-w8a16-rtn"]
    own = made["additional_metadata"]["edgetune"]
    assert list(own["devices"]) == ["box", "pi"]
    assert own["devices"]["pi"] == {"variant": "cpu-fp32"}


def test_onnxruntime_opens_it_strictly(tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", manifest())
    cpu = {"ep": "CPUExecutionProvider", "device": "cpu"}
    assert open_strictly(package) == {"cpu-fp32": cpu, "cpu-w8a16-rtn": cpu}
    check_reopened(package, VARIANTS)


def _unknown_key(m: dict[str, Any]) -> None:
    m["producer"] = "edgetune"


def _unknown_variant_key(m: dict[str, Any]) -> None:
    m["components"]["model"]["variants"]["cpu-fp32"]["threads"] = 4


def _future(m: dict[str, Any]) -> None:
    m["schema_version"] = "2.0"


def _no_component(m: dict[str, Any]) -> None:
    m["components"] = {}


def _two_components(m: dict[str, Any]) -> None:
    m["components"]["other"] = m["components"]["model"]


def _no_folder(m: dict[str, Any]) -> None:
    m["components"]["model"]["variants"]["ghost"] = {"ep": "CPUExecutionProvider"}


def _other_folder(m: dict[str, Any]) -> None:
    m["components"]["model"]["variants"]["cpu-fp32"]["variant_directory"] = "cpu-w8a16-rtn"


def _outside(m: dict[str, Any]) -> None:
    m["components"]["model"]["variants"]["cpu-fp32"]["variant_directory"] = "../elsewhere"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_unknown_key, "unknown field 'producer'"),
        (_unknown_variant_key, "unknown field 'threads'"),
        (_future, "schema_version major 2"),
        (_no_component, r"its components are \[\], onnxruntime-genai takes one"),
        (_two_components, r"its components are \['model', 'other'\]"),
        (_no_folder, "variant 'ghost' has no folder of its name"),
        (_other_folder, "variant 'cpu-fp32' has no folder of its name"),
        (_outside, "onnxruntime refuses the package|has no folder of its name"),
    ],
)
def test_an_unfit_manifest_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], words: str
) -> None:
    made = manifest()
    spoil(made)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputRefusedError, match=words):
        open_strictly(write_package(tmp_path / "p", made))


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", manifest())
    (package / "manifest.json").write_text("{")
    with pytest.raises(InputRefusedError, match="onnxruntime refuses the package"):
        open_strictly(package)


def test_another_provider_than_was_written_is_noticed(tmp_path: Path) -> None:
    made = manifest()
    made["components"]["model"]["variants"]["cpu-fp32"]["ep"] = "QNNExecutionProvider"
    with pytest.raises(StepFailedError, match="QNNExecutionProvider"):
        check_reopened(write_package(tmp_path / "p", made), VARIANTS)
