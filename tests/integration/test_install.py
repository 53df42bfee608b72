"""The wheel in environments that hold what they should: the core without torch, and the whole.

No package index is asked: the fresh environments get copies of the distributions installed here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib import metadata
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.slow
SITE = Path(sysconfig.get_path("purelib"))
TRAINING = ("torch", "transformers", "peft", "olive", "onnx", "safetensors", "bitsandbytes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def requirements_of(name: str, extra: str = "") -> set[str]:
    """The distributions that `name` needs at run time here, transitively."""
    found: set[str] = set()
    todo = [(name, extra)]
    while todo:
        current, wanted = todo.pop()
        for text in metadata.requires(current) or ():
            marker = text.partition(";")[2]
            if "extra" in marker and not (wanted and f'"{wanted}"' in marker.replace("'", '"')):
                continue
            required = re.match(r"[A-Za-z0-9._-]+", text)
            assert required is not None
            key = required[0].lower().replace("_", "-")
            try:
                metadata.version(key)
            except metadata.PackageNotFoundError:
                continue  # for another platform or Python
            if key not in found:
                found.add(key)
                todo.append((key, ""))
    return found


def copy_distribution(name: str, target: Path) -> None:
    """Copy one installed distribution's files into another site-packages."""
    for file in metadata.distribution(name).files or ():
        source = Path(str(metadata.distribution(name).locate_file(file)))
        if ".." in file.parts or not source.is_file():
            continue
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)


def make_environment(folder: Path, wheel: Path, distributions: set[str]) -> Path:
    """A fresh virtual environment with these distributions and the wheel; returns its bin."""
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in distributions:
        copy_distribution(name, site)
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return folder / "bin"


def open_to_others(folder: Path) -> None:
    """Let other users into a temporary folder: pytest makes its own, of which there is one more
    where tests run side by side, for their owner alone."""
    top = Path(tempfile.gettempdir())
    for parent in (folder, *folder.parents):
        if parent == top or top not in parent.parents:
            return
        parent.chmod(0o755)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """An environment as `pip install edgetune` makes it: no torch."""
    folder = tmp_path_factory.mktemp("core")
    open_to_others(folder)
    binaries = make_environment(folder / "venv", wheel, requirements_of("edgetune"))
    for name in TRAINING:
        done = subprocess.run([binaries / "python", "-c", f"import {name}"], capture_output=True)
        assert done.returncode != 0, f"{name} is in the core environment"
    return binaries


@pytest.fixture
def as_other(core: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Run the core's command as another user, from another folder, on a copy of the package."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    home = tmp_path_factory.mktemp("home")
    open_to_others(home)
    shutil.copytree(demo / "demo", home / "package")
    for path in [home, *home.rglob("*")]:
        os.chown(path, 65534, 65534)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [core / "edgetune", *arguments],
            cwd=home,
            user=65534,
            group=65534,
            env={"PATH": "/usr/bin:/bin", "HOME": str(home), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_core_validates_as_another_user_without_torch(as_other) -> None:  # type: ignore[no-untyped-def]
    done = as_other("validate", "package", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "pass"
    assert report["evidence"]["executed"] is True


def test_the_core_runs_inspects_and_lists(as_other) -> None:  # type: ignore[no-untyped-def]
    done = as_other("run", "package", "Please make the kitchen lamp warm at seven.")
    assert done.returncode == 0, done.stderr
    assert "kitchen lamp" in done.stdout
    for arguments in (
        ("inspect", "package", "--json"),
        ("devices", "list", "--json"),
        ("devices", "probe", "--json"),
        ("recipes", "list", "--json"),
        ("doctor", "--json"),
    ):
        done = as_other(*arguments)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)


def test_a_build_in_the_core_says_what_is_missing(as_other) -> None:  # type: ignore[no-untyped-def]
    done = as_other("build", "demo")
    assert done.returncode == 3
    assert "a build needs torch" in done.stderr
    assert "pip install 'edgetune[build]'" in done.stderr


def test_the_wheel_builds_the_demo_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    binaries = make_environment(tmp_path / "venv", wheel, set())
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    # The build tools come from here; the .pth of an editable edgetune is not read through a .pth.
    (site / "tools.pth").write_text(f"{SITE}\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    place = tmp_path / "elsewhere"
    place.mkdir()
    code = "import edgetune; print(edgetune.__file__)"
    where = subprocess.run(
        [binaries / "python", "-c", code], cwd=place, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in where.stdout
    for arguments in (["devices", "list"], ["build", "demo", "--json"]):
        done = subprocess.run(
            [binaries / "edgetune", *arguments],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (place / "out" / "demo" / "SHA256SUMS").is_file()
