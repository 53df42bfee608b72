"""What is sent, by digest; a transfer that breaks goes on; nothing damaged stays."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgetune.checksums import verify_checksums, write_checksums
from edgetune.errors import MissingError
from edgetune.files import digests_of_folder
from edgetune.remote import ssh, transfer
from edgetune.remote.ssh import BrokenLinkError, ask
from edgetune.remote.transfer import files_of, folder_name, send
from tests.remote.conftest import ADDRESS

pytestmark = pytest.mark.line


def _look(folder: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    job = {"name": "demo", "files": files_of(folder, verify_checksums(folder))}
    return job, ask(ADDRESS, sys.executable, {**job, "do": "look"})


def _send(folder: Path) -> list[str]:
    told: list[str] = []
    job, found = _look(folder)
    send(ADDRESS, sys.executable, folder, job, found, told.append)
    return told


def _there(far: Path) -> Path:
    return far / "home" / ".cache" / "edgetune" / "on-device" / "demo" / "package"


def _sent(far: Path) -> list[str]:
    log = far / "sent"
    lines = log.read_text().splitlines() if log.exists() else []
    log.write_text("")
    return lines


def test_only_what_is_missing_is_sent(far: Path, folder: Path) -> None:
    assert _send(folder) == ["5 of 5 files, 0.0 MB to send; the package has 0.0 MB"]
    assert digests_of_folder(_there(far)) == digests_of_folder(folder)
    # The two that are alike went as one; the largest last.
    assert _sent(far)[-1] == "put model.onnx.data 10240"
    assert _send(folder)[0].startswith("0 of 5 files")
    assert _sent(far) == []


def test_what_is_wrong_there_is_replaced_and_what_is_not_of_the_package_goes(
    far: Path, folder: Path
) -> None:
    _send(folder)
    there = _there(far)
    (there / "v" / "same.json").write_bytes(b"ALIKE")
    (there / "v" / "old.onnx").write_bytes(b"of an earlier package")
    (there / "empty").unlink()
    (there / "empty").symlink_to("/etc/passwd")
    _sent(far)
    _send(folder)
    assert digests_of_folder(there) == digests_of_folder(folder)
    assert sorted(line.split()[-1] for line in _sent(far)) == ["0", "5"]


def test_a_changed_package_sends_what_changed(far: Path, folder: Path) -> None:
    _send(folder)
    (folder / "v" / "same.json").write_bytes(b"another")
    write_checksums(folder)
    _sent(far)
    _send(folder)
    assert digests_of_folder(_there(far)) == digests_of_folder(folder)
    assert [line.rsplit(" ", 1)[0] for line in _sent(far)] == ["put same.json", "put SHA256SUMS"]


def test_a_transfer_that_broke_is_continued(far: Path, folder: Path) -> None:
    (far / "state").write_text("cut 6000")
    with pytest.raises(BrokenLinkError, match=r"the transfer broke after 0\.0 MB of 0\.0 MB: Conn"):
        _send(folder)
    first = sum(int(line.split()[-1]) for line in _sent(far))
    assert first == 6000
    (far / "state").unlink()
    assert "(an earlier transfer is continued)" in _send(folder)[0]
    sent = _sent(far)
    assert sent[0].startswith("reput model.onnx.data ")
    total = sum(dict(files_of(folder, "x").values()).values())
    assert first + sum(int(line.split()[-1]) for line in sent) == total
    assert digests_of_folder(_there(far)) == digests_of_folder(folder)


def test_a_part_that_is_not_what_it_should_be_is_sent_anew(far: Path, folder: Path) -> None:
    job, found = _look(folder)
    digest = job["files"]["v/model.onnx.data"][0]
    (Path(found["root"]) / "parts" / digest).write_bytes(b"x" * 5000)
    told = _send(folder)
    assert told[1:2] == ["1 files arrived damaged, once more"]
    assert [line for line in _sent(far) if "onnx" in line] == [
        "reput model.onnx.data 5240",
        "put model.onnx.data 10240",
    ]
    assert digests_of_folder(_there(far)) == digests_of_folder(folder)


def test_what_arrives_damaged_twice_is_an_error(far: Path, folder: Path) -> None:
    (far / "state").write_text("garble")
    with pytest.raises(MissingError, match="arrived damaged, twice"):
        _send(folder)
    assert not (_there(far) / "v").exists()


def test_no_space_there_is_told_before_and_after(
    far: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, found = _look(folder)
    with pytest.raises(MissingError, match=r"no space there: .* are to be sent to .*/demo"):
        send(ADDRESS, sys.executable, folder, job, {**found, "free_bytes": 100}, print)
    assert _sent(far) == []
    (far / "state").write_text("full 6000")
    monkeypatch.setattr(transfer, "ask", lambda *a: {**ask(*a), "free_bytes": 7})
    with pytest.raises(MissingError, match=r"no space there: .* 0\.0 MB are free") as why:
        send(ADDRESS, sys.executable, folder, job, found, lambda _: None)
    assert not isinstance(why.value, BrokenLinkError)


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("/no/such/python", "ssh://pi@device.example: there is no /no/such/python that runs"),
        ("false", "ssh://pi@device.example: false failed there: status 1"),
    ],
)
def test_a_python_that_is_none_is_told(far: Path, folder: Path, python: str, words: str) -> None:
    with pytest.raises(MissingError, match=words):
        ask(ADDRESS, python, {"do": "look", "name": "demo", "files": {}})


def test_a_host_that_cannot_be_reached_is_told(far: Path) -> None:
    (far / "state").write_text("unreachable")
    with pytest.raises(
        BrokenLinkError, match=r"reached: ssh: connect .* Connection refused"
    ) as why:
        ask(ADDRESS, "python3", {"do": "look", "name": "demo", "files": {}})
    assert why.value.hint == "it must answer without a question: ssh pi@device.example true"


def test_a_home_that_may_not_be_written_is_told(far: Path) -> None:
    (far / "home" / ".cache").write_text("a file where a folder should be")
    with pytest.raises(MissingError, match="Not a directory"):
        ask(ADDRESS, sys.executable, {"do": "look", "name": "demo", "files": {}})


def test_without_openssh_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingError, match="ssh is not installed here"):
        ask(ADDRESS, "python3", {})


def test_names_are_quoted_for_sftp() -> None:
    name = "a b\"c'd*e?[f]"
    assert shlex.split(ssh.quoted(name)) == [name]
    assert ssh.quoted(name) == '"a b\\"c\'d*e?[f]"'


@pytest.mark.parametrize("name", ["demo", "smollm2-lora_2"])
def test_a_plain_name_is_the_folder(name: str) -> None:
    assert folder_name(name) == name


def test_other_names_get_a_folder_of_their_own() -> None:
    names = {folder_name(name) for name in ("..", "a/b", "a_b", "a b", ".", "x" * 99, "ü")}
    assert len(names) == 7
    assert not any("/" in name or "." in name for name in names)
