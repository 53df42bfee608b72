"""`run.pyz`: the same bytes everywhere, and nothing in it that a device has not."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune.package.self_test_app import carried_modules, make_self_test_app

ROOT = Path(__file__).resolve().parent.parent.parent
ALLOWED = {"numpy", "onnxruntime", "onnxruntime_genai"}
# Imported inside functions that do not run on a device, or not on Linux.
LEFT_OUT = {
    "edgetune.console": {"rich"},
    "edgetune.host": {"psutil", "archspec"},
    "edgetune.report.make": {"edgetune.report.schema"},
    "edgetune.validate.validate": {
        "edgetune.environments.emulator",
        "edgetune.validate.emulated",
    },
}


@pytest.mark.parametrize(
    "environment",
    [{"TZ": "Asia/Tokyo", "LC_ALL": "C"}, {"TZ": "America/Lima", "LC_ALL": "C.UTF-8"}],
)
def test_the_same_bytes_wherever_it_is_made(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import os, sys, hashlib; os.umask(0o077)\n"
        "from edgetune.package.self_test_app import make_self_test_app\n"
        "print(hashlib.sha256(make_self_test_app()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(make_self_test_app()).hexdigest()


def test_it_names_no_time_no_owner_and_no_path() -> None:
    with zipfile.ZipFile(io.BytesIO(make_self_test_app())) as app:
        entries = app.infolist()
        assert [e.filename for e in entries] == sorted(e.filename for e in entries)
        assert {e.date_time for e in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert {e.external_attr >> 16 for e in entries} == {0o100644}
        assert not any(str(ROOT).encode() in app.read(e) for e in entries)


def test_it_carries_all_that_its_modules_import() -> None:
    carried = set(carried_modules())
    for name in carried:
        for wanted in _imports_of(name):
            top = wanted.split(".")[0]
            if top in sys.stdlib_module_names or top in ALLOWED or top == "__future__":
                continue
            left = LEFT_OUT.get(name, set())
            assert wanted in carried or wanted in left or top in left, f"{name} imports {wanted}"


def test_it_loads_where_nothing_else_is_installed(tmp_path: Path) -> None:
    app = tmp_path / "run.pyz"
    app.write_bytes(make_self_test_app())
    modules = [name for name in carried_modules() if name != "edgetune"]
    code = f"""
import importlib, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in {ALLOWED | {"edgetune"}!r} and top not in sys.stdlib_module_names:
            if not top.startswith("_"):
                raise ModuleNotFoundError(f"{{name}} is not on a device", name=name)
sys.meta_path.insert(0, Nothing())
sys.path.insert(0, {str(app)!r})
for name in {modules!r}:
    module = importlib.import_module(name)
    assert module.__file__.startswith({str(app)!r}), module.__file__
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={key: text for key, text in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_python_that_is_too_old_is_told_so() -> None:
    with zipfile.ZipFile(io.BytesIO(make_self_test_app())) as app:
        text = app.read("__main__.py").decode()
    # Every Python 3 can parse what comes before the version is looked at, and the rest.
    ast.parse(text, feature_version=(3, 4))
    old = text.replace("sys.version_info", "(3, 9, 2)")
    done = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: Python 3.9 is too old for this package\nhint: ")


def _imports_of(module: str) -> Iterator[str]:
    """All that a module imports anywhere but for a type checker."""
    place = ROOT / module.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (own.name for own in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
