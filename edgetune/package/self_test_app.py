"""`self_test/run.pyz`: the program with which a package checks itself on its device.

A zip file that Python runs (the format of the standard library's zipapp), of edgetune's own
modules: those that `validate/on_device.py` imports at its top, and so on, and the few that are
loaded by name. None of them needs more than the standard library, numpy, onnxruntime and
onnxruntime-genai. The same bytes wherever it is made: names sorted, times and modes fixed, nothing
compressed (another zlib would give other bytes).
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import edgetune

_ROOT = Path(edgetune.__file__).resolve().parent.parent
_ENTRY = "edgetune.validate.on_device"
# Run in processes of their own, or imported only where they are needed.
_LOADED_BY_NAME = (
    "edgetune.report.make",
    "edgetune.statistics",
    "edgetune.validate.latency_worker",
    "edgetune.validate.validate",
)
# The first moment that a zip file can name.
_TIME = (1980, 1, 1, 0, 0, 0)
# A Python that is too old for the modules reads this file alone.
_MAIN = """\
import sys

if sys.version_info < (3, 11):
    sys.stderr.write(
        "error: Python %d.%d is too old for this package\\n"
        "hint: run it with Python 3.11 or newer\\n" % sys.version_info[:2]
    )
    sys.exit(3)
from pathlib import Path

from edgetune.validate.on_device import main

sys.exit(main(sys.argv[1:], Path(sys.argv[0])))
"""


@cache
def make_self_test_app() -> bytes:
    """The bytes of `run.pyz`."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as app:
        for name, text in sorted({"__main__.py": _MAIN, **_sources()}.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3  # Unix, whatever made it
            entry.external_attr = 0o100644 << 16
            app.writestr(entry, text)
    return written.getvalue()


def carried_modules() -> list[str]:
    """The names of all modules in `run.pyz`, sorted."""
    tasks = [f"edgetune.tasks.{file.stem}" for file in (_ROOT / "edgetune/tasks").glob("*.py")]
    waiting = [_ENTRY, *_LOADED_BY_NAME, *(name for name in tasks if "__" not in name)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [*_imported_by(name), *(() if name == "edgetune" else [name.rpartition(".")[0]])]
    return sorted(found)


def _sources() -> dict[str, str]:
    files = {_file_of(name): name for name in carried_modules()}
    return {
        file.relative_to(_ROOT).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(file for file in files if file is not None)
    }


def _imported_by(module: str) -> Iterator[str]:
    """edgetune's own modules that a module imports at its top; what a function imports, or a type
    checker alone, is not followed."""
    file = _file_of(module)
    assert file is not None, module
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (own.name for own in node.names if own.name.startswith("edgetune"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgetune"):
            assert node.module is not None
            yield node.module
            inner = (f"{node.module}.{own.name}" for own in node.names)
            yield from (name for name in inner if _file_of(name) is not None)


def _file_of(module: str) -> Path | None:
    """The module's file; null for a name that is none."""
    place = _ROOT / module.replace(".", "/")
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    return None
