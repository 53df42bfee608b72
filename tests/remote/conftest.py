"""A far side on this machine: `ssh` and `sftp` that are small programs, a home of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetune.checksums import write_checksums
from edgetune.remote.address import Address

ADDRESS = Address("device.example", "pi")
# Reads $FAR/state: nothing, or how the next calls go wrong.
_SSH = """#!/bin/sh
case "$(cat "$FAR/state" 2>/dev/null)" in
unreachable) echo "ssh: connect to host device.example port 22: Connection refused" >&2; exit 255;;
esac
echo "Welcome to the device."
for last; do :; done
echo "$last" >> "$FAR/commands"
HOME="$FAR/home" XDG_CACHE_HOME= exec sh -c "$last"
"""
_SFTP = """#!{python} -S
import os, shlex, sys
far = os.environ["FAR"]
state = open(far + "/state").read().split() if os.path.exists(far + "/state") else []
left = int(state[1]) if state[:1] in (["cut"], ["full"]) else None
for line in sys.stdin:
    verb, source, target = shlex.split(line)
    if verb == "get":
        open(target, "wb").write(open(source, "rb").read())
        continue
    data = open(source, "rb").read()
    begin = os.path.getsize(target) if verb == "reput" else 0
    piece = data[begin:]
    if left is not None:
        piece, left = piece[:left], max(0, left - len(piece))
    with open(target, "ab" if verb == "reput" else "wb") as file:
        file.write(bytes(reversed(piece)) if state[:1] == ["garble"] else piece)
    with open(far + "/sent", "a") as log:
        log.write(f"{{verb}} {{os.path.basename(source)}} {{len(piece)}}\\n")
    if left == 0:
        said = "Connection closed" if state[0] == "cut" else f'write remote "{{target}}": Failure'
        print(said, file=sys.stderr)
        sys.exit(255 if state[0] == "cut" else 1)
"""


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The far side's folder: `home`, `state` to write, `sent` and `commands` to read."""
    folder = tmp_path / "far"
    (folder / "home").mkdir(parents=True)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("ssh", _SSH), ("sftp", _SFTP.format(python=sys.executable))):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("FAR", str(folder))
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of a package, two of them alike, some with names that need care."""
    place = tmp_path / "package"
    (place / "v").mkdir(parents=True)
    (place / "v" / "model.onnx.data").write_bytes(bytes(range(256)) * 40)
    (place / "v" / "a [b] 'c' *.json").write_bytes(b"alike")
    (place / "v" / "same.json").write_bytes(b"alike")
    (place / "empty").write_bytes(b"")
    write_checksums(place)
    return place
