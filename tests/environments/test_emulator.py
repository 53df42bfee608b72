"""From a profile to a command that runs on another processor, and what is told where none does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.device import Device, Emulate, find_device
from edgetune.environments import emulator
from edgetune.environments.emulator import (
    Emulation,
    check_needs,
    emulation_from_json,
    find_emulation,
    find_qemu,
    guest,
    qemu_cpus,
)
from edgetune.errors import MissingError, UsageError
from edgetune.host import Host

HOST = Host("x86_64", "linux", "a processor", 2, 8 << 30, ("avx2",))
ARM_HOST = Host("aarch64", "linux", "a processor", 2, 8 << 30, ("asimd",))
A76 = {"machine": "aarch64", "instruction_sets": ["asimd", "asimddp"], "main_id": 0x414FD0B1}


def made(folder: Path) -> Path:
    """An aarch64 environment with nothing in it that runs."""
    place = folder / "environments" / "aarch64"
    (place / "root" / "usr" / "bin").mkdir(parents=True)
    (place / "root" / "lib").mkdir()
    (place / "root" / "usr" / "bin" / "python3.11").touch()
    (place / "wheels").mkdir()
    (place / "environment.json").write_text('{"wheels": ["onnxruntime-1.32.0-cp311"]}')
    return place


def with_cpu(name: str, **more: Any) -> Device:
    device = find_device("raspberry-pi-5")
    return device.model_copy(update={"emulate": Emulate(cpu=name, **more)})


def test_qemu_says_its_version_and_processors(qemu: Path) -> None:
    program, version = find_qemu("x86_64")
    assert version == "qemu-x86_64 7.2.22"
    assert qemu_cpus(program) == ["Haswell", "base"]
    assert qemu_cpus(find_qemu("aarch64")[0]) == ["cortex-a72", "cortex-a76", "max"]


def test_a_profile_becomes_an_emulation(qemu: Path, tmp_path: Path) -> None:
    place = made(tmp_path)
    found = find_emulation(find_device("raspberry-pi-5"), HOST)
    assert (found.cpu, found.emulator, found.environment) == (
        "cortex-a76", "qemu-aarch64 7.2.22", str(place),
    )  # fmt: skip
    assert emulation_from_json(found.as_json()) == found
    assert str(tmp_path) not in str(found.as_input())
    assert found.as_input()["environment"]["wheels"]
    haswell = find_emulation(find_device("intel-i7-4770"), HOST)
    assert (haswell.cpu, haswell.environment) == ("Haswell", None)


def test_an_unknown_processor_is_told_with_those_that_are_known(qemu: Path, tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(UsageError, match="knows no processor 'cortex-a99'") as caught:
        find_emulation(with_cpu("cortex-a99,sve=off"), HOST)
    assert "cortex-a72, cortex-a76, max" in caught.value.hint


def test_what_is_missing_is_told_with_its_remedy(
    qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match="there is no aarch64 environment") as caught:
        find_emulation(find_device("raspberry-pi-5"), HOST)
    assert caught.value.hint == "make it: edgetune doctor --make aarch64"
    with pytest.raises(MissingError, match="x86_64 is emulated with an x86_64 host's own Python"):
        find_emulation(find_device("intel-i7-4770"), ARM_HOST)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingError, match="qemu-aarch64 is not installed here") as caught:
        find_emulation(find_device("raspberry-pi-5"), HOST)
    assert "apt-get install qemu-user" in caught.value.hint


def test_devices_that_nothing_emulates_say_why(qemu: Path) -> None:
    with pytest.raises(UsageError, match="intel-n100 cannot be emulated: QEMU has no AVX-VNNI"):
        find_emulation(find_device("intel-n100"), HOST)
    with pytest.raises(UsageError, match="its profile names no processor to emulate"):
        find_emulation(find_device("this-machine"), HOST)
    macos = with_cpu("cortex-a76").model_copy(update={"os": "macos"})
    with pytest.raises(UsageError, match="runs Linux programs on Linux"):
        find_emulation(macos, HOST)


def test_a_broken_qemu_is_no_traceback(qemu: Path) -> None:
    (qemu / "qemu-x86_64").write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    with pytest.raises(MissingError, match="does not run: no such luck"):
        find_qemu("x86_64")


def test_the_guest_on_arm_has_a_root_of_its_own(
    qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = made(tmp_path)
    asked: list[list[str]] = []
    monkeypatch.setattr(
        emulator, "ask_processor", lambda command, _environment: asked.append(command) or A76
    )
    monkeypatch.setenv("LD_PRELOAD", "/for/another/processor.so")
    emulation = find_emulation(find_device("raspberry-pi-5"), HOST)
    with guest(emulation) as (command, environment):
        root = Path(command[command.index("-L") + 1])
        assert command[1:3] == ["-cpu", "cortex-a76"]
        assert command[-1] == str(root / "usr" / "bin" / "python3.11")
        assert "CPU part\t: 0xd0b" in (root / "proc" / "cpuinfo").read_text()
        assert (root / "lib").resolve() == place / "root" / "lib"
        first, second = environment["PYTHONPATH"].split(os.pathsep)
        assert first == str(place / "wheels")
        assert [p.name for p in Path(second).iterdir()] == ["edgetune"]
        assert "LD_PRELOAD" not in environment
    assert asked == [command]
    assert not root.exists()
    assert not (place / "root" / "proc").exists(), "the shared environment was written to"


def test_a_stand_in_shows_the_core_that_its_profile_names(
    qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path)
    nameless = {**A76, "main_id": 0x000F0510}
    monkeypatch.setattr(emulator, "ask_processor", lambda *_: dict(nameless))
    emulation = find_emulation(find_device("aws-graviton3"), HOST)
    assert emulation.cpu.startswith("max,")
    with guest(emulation) as (command, _):
        text = (Path(command[command.index("-L") + 1]) / "proc" / "cpuinfo").read_text()
    assert "CPU implementer\t: 0x41" in text
    assert "CPU part\t: 0xd40" in text


def test_the_guest_on_x86_runs_the_real_python_with_the_own_libraries(qemu: Path) -> None:
    with guest(find_emulation(find_device("intel-i7-4770"), HOST)) as (command, environment):
        assert command[-1] == os.path.realpath(sys.executable)
        import onnxruntime

        libraries = Path(onnxruntime.__file__).parent.parent
        assert str(libraries) in environment["PYTHONPATH"].split(os.pathsep)


def test_a_processor_without_what_the_profile_asks_for_is_refused() -> None:
    emulation = Emulation("x86_64", "Icelake-Server", "", "q", "qemu 7.2", None, ("avx512_vnni",))
    found = {"instruction_sets": ["avx2"]}
    with pytest.raises(UsageError, match=r"Icelake-Server in qemu 7\.2 has no avx512_vnni"):
        check_needs(emulation, found, "my-box")
    check_needs(emulation, {"instruction_sets": ["avx512_vnni"]}, "my-box")
    stand_in = Emulation("x86_64", "Haswell", "no VNNI", "q", "qemu 7.2", None, ("avx512_vnni",))
    check_needs(stand_in, found, "my-box")
