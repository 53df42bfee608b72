"""A package is whole, or what is wrong with it is named."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.checksums import verify_checksums, write_checksums
from edgetune.errors import InputRefusedError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    for name in ("manifest.json", "cpu/model.onnx", "cpu/model.onnx.data", "name with \u00e4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    write_checksums(folder)
    return folder


def test_what_is_written_holds(package: Path) -> None:
    digest = hashlib.sha256((package / "SHA256SUMS").read_bytes()).hexdigest()
    assert verify_checksums(package) == digest == write_checksums(package)
    names = [line[66:] for line in (package / "SHA256SUMS").read_text().splitlines()]
    assert names == ["cpu/model.onnx", "cpu/model.onnx.data", "manifest.json", "name with \u00e4"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_sha256sum_agrees(package: Path) -> None:
    command = ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"]
    assert subprocess.run(command, cwd=package, check=False).returncode == 0


def test_reports_are_not_covered(package: Path) -> None:
    digest = verify_checksums(package)
    (package / "reports").mkdir()
    (package / "reports" / "pi.json").write_text("{}")
    assert verify_checksums(package) == digest == write_checksums(package)


def _change(package: Path) -> None:
    (package / "cpu/model.onnx.data").write_bytes(b"other")


def _remove(package: Path) -> None:
    (package / "manifest.json").unlink()


def _add(package: Path) -> None:
    (package / "cpu/extra.json").write_text("{}")


def _rename(package: Path) -> None:
    (package / "cpu/model.onnx").rename(package / "cpu/other.onnx")


def _link(package: Path) -> None:
    (package / "cpu/model.onnx").unlink()
    (package / "cpu/model.onnx").symlink_to("model.onnx.data")


def _unlist(package: Path) -> None:
    lines = (package / "SHA256SUMS").read_text().splitlines(keepends=True)
    (package / "SHA256SUMS").write_text("".join(lines[1:]))


def _escape(package: Path) -> None:
    (package.parent / "secret").write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    with (package / "SHA256SUMS").open("a") as file:
        file.write(f"{digest}  ../secret\n")


def _twice(package: Path) -> None:
    text = (package / "SHA256SUMS").read_text()
    (package / "SHA256SUMS").write_text(text + text.splitlines(keepends=True)[0])


def _cut(package: Path) -> None:
    data = (package / "SHA256SUMS").read_bytes()
    (package / "SHA256SUMS").write_bytes(data[:-5])


def _garble(package: Path) -> None:
    with (package / "SHA256SUMS").open("a") as file:
        file.write("no checksum\n")


def _empty(package: Path) -> None:
    (package / "SHA256SUMS").write_text("")


def _lose(package: Path) -> None:
    (package / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (_change, r"not the package that was built: cpu/model\.onnx\.data \(changed\)$"),
        (_remove, r"manifest\.json \(missing\)"),
        (_add, r"cpu/extra\.json \(not in its list\)"),
        (_rename, r"cpu/model\.onnx \(missing\); cpu/other\.onnx \(not in its list\)"),
        (_link, "a link or special file"),
        (_unlist, r"cpu/model\.onnx \(not in its list\)"),
        (_escape, r"\.\./secret \(missing\)"),
        (_twice, r"SHA256SUMS:5: lists cpu/model\.onnx again"),
        (_cut, "cut short"),
        (_garble, "SHA256SUMS:5: is no checksum line"),
        (_empty, "cut short"),
        (_lose, "no readable SHA256SUMS"),
    ],
)
def test_tampering_is_named(package: Path, tamper: Callable[[Path], None], words: str) -> None:
    tamper(package)
    with pytest.raises(InputRefusedError, match=words) as raised:
        verify_checksums(package)
    assert raised.value.exit_code == 4


def test_many_changes_are_counted(package: Path) -> None:
    for number in range(7):
        (package / f"new{number}").write_text("x")
    with pytest.raises(InputRefusedError, match=r"new4 \(not in its list\) and 2 more"):
        verify_checksums(package)


@pytest.mark.parametrize("name", ["back\\slash", "line\nbreak"])
def test_names_that_sha256sum_would_escape_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(InputRefusedError, match="cannot be listed"):
        write_checksums(tmp_path)
