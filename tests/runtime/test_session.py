"""Opening a package: threads, providers, and what does not open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.errors import InputRefusedError, MissingError, UsageError
from edgetune.host import usable_cores
from edgetune.runtime import session
from edgetune.runtime.session import OpenPackage, open_package
from tests.tiny import VOCABULARY
from tests.tiny_package import END, VARIANT, copy_of, sign


def test_a_package_opens_with_the_threads_asked_for(opened: OpenPackage) -> None:
    assert (opened.variant.name, opened.threads) == (VARIANT, 1)
    assert opened.provider == "CPUExecutionProvider"
    assert (opened.vocabulary_size, opened.context_length) == (VOCABULARY, 256)
    assert opened.eos_token_ids == (END,)
    assert opened.load_s > 0
    assert opened.manifest.digest is not None


def test_threads_come_from_the_device_else_from_the_host(package: Path) -> None:
    assert open_package(package, device="generic-x86-64").threads == 1
    assert open_package(package, device="this-machine").threads == usable_cores()


def test_threads_reach_onnxruntime(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime_genai as og

    overlays: list[str] = []

    class Recording(og.Config):
        def overlay(self, text: str) -> None:
            overlays.append(text)
            super().overlay(text)

    monkeypatch.setattr(og, "Config", Recording)
    open_package(package, threads=2)
    options = json.loads(overlays[0])["model"]["decoder"]["session_options"]
    assert options == {"intra_op_num_threads": 2}


def test_a_changed_file_is_refused_by_name(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    data = copy / VARIANT / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputRefusedError, match=r"model\.onnx\.data"):
        open_package(copy)


def test_a_graph_that_does_not_open_is_refused(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    (copy / VARIANT / "model.onnx").write_bytes(b"not a graph")
    sign(copy)
    with pytest.raises(InputRefusedError, match="onnxruntime-genai cannot open it"):
        open_package(copy)


def test_an_incomplete_genai_config_is_refused(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    (copy / VARIANT / "genai_config.json").write_text('{"model": {"vocab_size": 3}}')
    sign(copy)
    with pytest.raises(InputRefusedError, match="no context_length, eos_token_id, decoder"):
        open_package(copy)


def test_an_unknown_device_is_refused(package: Path) -> None:
    with pytest.raises(UsageError, match="no device called 'pi'"):
        open_package(package, device="pi")


def test_a_provider_that_is_not_here_is_missing(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace("CPUExec", "CUDAExec"))
    sign(copy)
    with pytest.raises(MissingError, match="CUDAExecutionProvider is not in this environment's"):
        open_package(copy)


def test_a_silent_fallback_to_the_cpu_is_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(package, tmp_path / "p")
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace("CPUExec", "CUDAExec"))
    sign(copy)
    monkeypatch.setattr(session, "_need_provider", lambda provider: None)
    with pytest.raises(MissingError, match="asked for CUDAExecutionProvider, runs on CPU"):
        open_package(copy)
