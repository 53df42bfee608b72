"""The environment in which 64-bit Arm programs run under QEMU: a root folder and wheels.

    root               Python and what it needs, from Debian's packages, unpacked (about 55 MB)
    wheels             numpy, onnxruntime, onnxruntime-genai for Arm, unpacked (about 150 MB)
    environment.json   what is in it; written last

Made without root rights: apt keeps the other architecture's lists in a folder of its own, the
system's own architectures stay as they are. Whole or absent: made under a temporary name, tried,
then renamed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgetune.errors import InputRefusedError, MissingError
from edgetune.files import (
    dump_json,
    locked,
    need_space,
    read_json,
    replace_folder,
    write_text,
)

RECORD = "environment.json"
# Debian release → its Python, whose number the wheels must have.
_PYTHON = {"bookworm": "3.11"}
_PACKAGES = (
    *("python{0}-minimal", "libpython{0}-minimal", "libpython{0}-stdlib", "libc6", "libgcc-s1"),
    *("libstdc++6", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"),
    *("libcrypt1", "libuuid1"),
)
_WHEELS = ("numpy", "onnxruntime", "onnxruntime-genai")
# onnxruntime and onnxruntime-genai: 2.28; numpy of some versions: 2014 or 2.27.
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_SPACE_BYTES = 500_000_000
_TEMPORARY = ".tmp-aarch64-"
_FROM = "name a folder made elsewhere: edgetune doctor --make aarch64 --from FOLDER"

Progress = Callable[[str], None]


def environments_folder() -> Path:
    """$EDGETUNE_ENVIRONMENTS, else `edgetune/environments` in the user's cache folder."""
    if named := os.environ.get("EDGETUNE_ENVIRONMENTS"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "edgetune" / "environments"


def environment_folder(name: str) -> Path:
    """Where the environment of this name lies or would lie."""
    return environments_folder() / name


def is_made(folder: Path) -> bool:
    """Whether a whole environment is there: its record is written last."""
    return (folder / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """{python, packages, wheels} of a made environment. Raises InputRefusedError when damaged."""
    record = read_json(folder / RECORD)
    if isinstance(record, dict):
        return record
    msg = f"{folder / RECORD}: not an object"
    raise InputRefusedError(msg, "make it again: edgetune doctor --make aarch64")


def make_aarch64(
    versions: dict[str, str | None],
    try_out: Callable[[Path], None],
    progress: Progress,
    source: Path | None = None,
) -> Path:
    """Make the environment, or make it again; returns its folder.

    `versions`: of the wheels, those of this environment. `try_out` raises when libraries do not
    load in the folder it is given. `source`: a folder with `root` and `wheels` to copy instead.
    Raises MissingError: no apt, no pip, another release than Debian's that are known, no network,
    no space; InputRefusedError: a source without those parts.
    """
    place = environment_folder("aarch64")
    place.parent.mkdir(parents=True, exist_ok=True)
    need_space(place.parent, _SPACE_BYTES, "the environment")
    with (
        locked(place.parent / ".lock"),
        tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=place.parent) as folder,
    ):
        # The lock says that nobody works in the others: a killed run left them.
        for left in place.parent.glob(f"{_TEMPORARY}*"):
            if left != Path(folder):
                shutil.rmtree(left, ignore_errors=True)
        new = Path(folder) / "aarch64"
        if source is None:
            record = _download(new, Path(folder), versions, progress)
        else:
            record = _copy(source, new, progress)
        progress("trying it out under the emulator")
        try_out(new)
        write_text(new / RECORD, dump_json(record))
        replace_folder(new, place)
    return place


def _download(
    new: Path, work: Path, versions: dict[str, str | None], progress: Progress
) -> dict[str, Any]:
    python = _PYTHON.get(_release())
    if python is None:
        known = ", ".join(f"Debian {name}" for name in _PYTHON)
        msg = f"the aarch64 environment is made from Debian's packages ({known}), this is "
        msg += _release() or "another system"
        raise MissingError(msg, _FROM)
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            msg = f"{tool} is not installed here"
            raise MissingError(msg, _FROM)
    absent = [name for name in _WHEELS if not versions.get(name)]
    if absent:
        msg = f"{', '.join(absent)}: not installed here, so no version to take for Arm"
        raise MissingError(msg, "python -m pip install edgetune")
    (new / "root").mkdir(parents=True)
    packages = _unpack_packages(new / "root", work / "apt", python, progress)
    wheels = _unpack_wheels(new / "wheels", work / "wheels", python, versions, progress)
    return {"arch": "aarch64", "python": python, "packages": packages, "wheels": wheels}


def _unpack_packages(root: Path, work: Path, python: str, progress: Progress) -> list[str]:
    for part in ("state/lists/partial", "cache/archives/partial", "packages"):
        (work / part).mkdir(parents=True)
    (work / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
        # As root apt would fetch as a user who may not write into this folder.
        "APT::Sandbox::User": "root",
    }
    apt = [
        "apt-get",
        *(part for key, value in options.items() for part in ("-o", f"{key}={value}")),
    ]
    progress("apt: lists of arm64 packages")
    # A source that has nothing for Arm is no fault: what counts is whether the packages come.
    _run([*apt, "-qq", "update"], work, required=False)
    progress("apt: packages")
    names = [name.format(python) for name in _PACKAGES]
    _run([*apt, "-qq", "download", *names], work / "packages")
    files = sorted((work / "packages").glob("*.deb"))
    for file in files:
        _run(["dpkg", "-x", str(file), str(root)], work)
    return [file.stem for file in files]


def _unpack_wheels(
    folder: Path, work: Path, python: str, versions: dict[str, str | None], progress: Progress
) -> list[str]:
    progress("pip: wheels for Arm")
    work.mkdir()
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    wanted = [f"{name}=={versions[name]}" for name in _WHEELS]
    how = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command = [sys.executable, "-m", "pip", "download", "-q", *how, *platforms, "-d", str(work)]
    _run([*command, *wanted], work)
    files = sorted(work.glob("*.whl"))
    for file in files:
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(folder)
    return [file.stem for file in files]


def _copy(source: Path, new: Path, progress: Progress) -> dict[str, Any]:
    lacking = [part for part in ("root/usr/bin", "wheels") if not (source / part).is_dir()]
    if lacking:
        msg = f"{source}: not an aarch64 environment, it has no {', '.join(lacking)}"
        raise InputRefusedError(msg, "name a folder that `edgetune doctor --make aarch64` made")
    progress(f"copying {source}")
    for part in ("root", "wheels"):
        shutil.copytree(source / part, new / part, symlinks=True)
    if is_made(source):
        return read_record(source)
    wheels = sorted(path.stem for path in (new / "wheels").glob("*.dist-info"))
    return {"arch": "aarch64", "python": None, "packages": [], "wheels": wheels}


def _run(command: Sequence[str], folder: Path, required: bool = True) -> None:
    """Run a tool in a folder. Raises MissingError with its last words when it must not fail."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if required and done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        tool = "pip" if "pip" in command else Path(command[0]).name
        msg = f"{tool} failed: {words[-1][:300]}"
        raise MissingError(msg, f"check the network and the package sources, or {_FROM}")


def _release() -> str:
    """VERSION_CODENAME of /etc/os-release where ID is debian; else empty (or the system's name)."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return ""
    rows = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    own = {key: value.strip("\"'") for key, value in rows.items()}
    if own.get("ID") == "debian":
        return own.get("VERSION_CODENAME", "")
    return own.get("PRETTY_NAME", "")
