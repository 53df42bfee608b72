"""Making the aarch64 environment: whole or absent, and what to do where it cannot be made."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgetune.environments import aarch64
from edgetune.environments.aarch64 import environment_folder, is_made, make_aarch64, read_record
from edgetune.errors import InputRefusedError, MissingError

VERSIONS: dict[str, str | None] = {
    "numpy": "2.4.6",
    "onnxruntime": "1.32.0",
    "onnxruntime-genai": "0.18.0",
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETUNE_ENVIRONMENTS", str(tmp_path / "environments"))
    monkeypatch.setattr(aarch64, "_release", lambda: "bookworm")
    monkeypatch.setattr(aarch64.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run; packages and wheels appear as if they had been."""
    seen: list[list[str]] = []

    def run(command: Sequence[str], folder: Path, required: bool = True) -> None:
        seen.append(list(command))
        if "pip" in command:
            with zipfile.ZipFile(folder / "numpy-2.4.6-cp311.whl", "w") as wheel:
                wheel.writestr("numpy/__init__.py", "")
        elif "download" in command:
            (folder / "libc6_2.36_arm64.deb").touch()
        elif command[0] == "dpkg":
            (Path(command[-1]) / "usr" / "bin").mkdir(parents=True)

    monkeypatch.setattr(aarch64, "_run", run)
    return seen


def leftovers() -> list[str]:
    folder = environment_folder("aarch64").parent
    return [path.name for path in folder.iterdir() if path.name.startswith(".tmp")]


def test_it_is_made_from_packages_and_wheels_and_tried(commands: list[list[str]]) -> None:
    tried: list[Path] = []
    place = make_aarch64(VERSIONS, tried.append, lambda _: None)
    assert place == environment_folder("aarch64")
    assert is_made(place)
    assert (place / "wheels" / "numpy" / "__init__.py").is_file()
    assert read_record(place)["packages"] == ["libc6_2.36_arm64"]
    assert tried[0] != place
    update, download, unpack, pip = commands
    # The system's own architectures are never touched: apt gets a state folder of its own.
    assert "APT::Architectures=arm64" in update
    assert any(part.startswith("Dir::State::status=") for part in download)
    assert "libpython3.11-stdlib" in download
    assert unpack[:2] == ["dpkg", "-x"]
    assert "onnxruntime-genai==0.18.0" in pip
    assert "manylinux_2_28_aarch64" in pip


def test_one_that_does_not_run_is_not_left_behind(commands: list[list[str]]) -> None:
    def fails(_folder: Path) -> None:
        msg = "does not load"
        raise MissingError(msg)

    with pytest.raises(MissingError, match="does not load"):
        make_aarch64(VERSIONS, fails, lambda _: None)
    assert not environment_folder("aarch64").exists()
    assert not leftovers()


def test_an_interrupt_and_a_kill_leave_the_old_one(commands: list[list[str]]) -> None:
    place = make_aarch64(VERSIONS, lambda _: None, lambda _: None)
    (place / "wheels" / "old").touch()
    killed = place.parent / ".tmp-aarch64-killed"
    killed.mkdir()

    def interrupt(_folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_aarch64(VERSIONS, interrupt, lambda _: None)
    assert (place / "wheels" / "old").exists()
    assert not leftovers()
    make_aarch64(VERSIONS, lambda _: None, lambda _: None)
    assert not (place / "wheels" / "old").exists()


def test_a_folder_made_elsewhere_is_copied(commands: list[list[str]], tmp_path: Path) -> None:
    source = tmp_path / "usb"
    (source / "root" / "usr" / "bin").mkdir(parents=True)
    (source / "wheels" / "numpy-2.4.6.dist-info").mkdir(parents=True)
    place = make_aarch64(VERSIONS, lambda _: None, lambda _: None, source)
    assert commands == []
    assert read_record(place)["wheels"] == ["numpy-2.4.6"]
    (source / "wheels").rename(source / "other")
    with pytest.raises(InputRefusedError, match="not an aarch64 environment, it has no wheels"):
        make_aarch64(VERSIONS, lambda _: None, lambda _: None, source)


def test_another_system_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aarch64, "_release", lambda: "Fedora Linux 42")
    with pytest.raises(MissingError, match="this is Fedora Linux 42") as caught:
        make_aarch64(VERSIONS, lambda _: None, lambda _: None)
    assert "--from FOLDER" in caught.value.hint


def test_a_tool_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="sh failed: no network") as caught:
        aarch64._run(["sh", "-c", "echo no network >&2; exit 100"], tmp_path)
    assert "check the network" in caught.value.hint
    aarch64._run(["sh", "-c", "exit 100"], tmp_path, required=False)


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGETUNE_ENVIRONMENTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/a/cache")
    assert environment_folder("aarch64") == Path("/a/cache/edgetune/environments/aarch64")
