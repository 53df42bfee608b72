"""Children prepared ahead of their work, and what they may not see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune import child
from edgetune.child import NO_LIBRARIES, Libraries, prepare_child, run_child
from edgetune.errors import StepFailedError

ROOT = Path(__file__).resolve().parent.parent
SOME = Libraries(("tests.child_steps", "colorsys"))


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(child, "usable_cores", lambda: 2)
    monkeypatch.setattr(child, "available_memory_bytes", lambda: 10**10)


def call(tmp_path: Path, libraries: Libraries, **arguments: object) -> dict[str, object]:
    facts, _ = run_child(
        "tests.child_steps:tell_modules",
        arguments,
        tmp_path,
        log=tmp_path / "logs" / "step.log",
        progress=lambda _: None,
        libraries=libraries,
    )
    return facts


def test_a_prepared_child_gets_the_job_with_its_libraries_imported(tmp_path: Path) -> None:
    prepare_child(SOME)
    waiting = child._prepared[SOME].process.pid
    facts = call(tmp_path, SOME, names=["colorsys", "wave"])
    assert facts == {"pid": waiting, "imported": ["colorsys"], "found": ["colorsys", "wave"]}
    assert not child._prepared
    # The next one is another child.
    assert call(tmp_path, SOME, names=["colorsys"])["pid"] != waiting


def test_other_libraries_are_another_child(tmp_path: Path) -> None:
    prepare_child(SOME)
    waiting = child._prepared[SOME].process.pid
    assert call(tmp_path, NO_LIBRARIES, names=[])["pid"] != waiting
    assert SOME in child._prepared
    child._end_prepared()


def test_a_prepared_child_that_died_is_replaced(tmp_path: Path) -> None:
    prepare_child(SOME)
    process = child._prepared[SOME].process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert call(tmp_path, SOME, names=["colorsys"])["imported"] == ["colorsys"]


def test_a_hidden_module_is_as_if_not_installed(tmp_path: Path) -> None:
    hidden = Libraries(("tests.child_steps",), ("wave",))
    assert call(tmp_path, hidden, names=["wave", "colorsys"])["found"] == ["colorsys"]


def test_a_library_that_cannot_be_imported_is_told_by_the_step(tmp_path: Path) -> None:
    absent = Libraries(("no_such_library",))
    assert call(tmp_path, absent, names=[])["imported"] == []
    with pytest.raises(StepFailedError, match="no_such_function"):
        run_child(
            "tests.child_steps:no_such_function",
            {},
            tmp_path,
            log=tmp_path / "log",
            progress=lambda _: None,
            libraries=absent,
        )


def test_what_a_prepared_child_prints_goes_to_the_log(tmp_path: Path) -> None:
    prepare_child(SOME)
    call(tmp_path, SOME, names=[], says="words for the log")
    assert (tmp_path / "logs" / "step.log").read_text() == "words for the log\n"


@pytest.mark.parametrize("end", ["exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_child_that_nobody_came_for_ends_with_the_program(end: str) -> None:
    program = (
        "import os, edgetune.child as c\n"
        "c.usable_cores = lambda: 2\n"
        "c.available_memory_bytes = lambda: 10**10\n"
        "c.prepare_child(c.Libraries(('colorsys',)))\n"
        "print(next(iter(c._prepared.values())).process.pid, flush=True)\n"
        f"{end}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    pid = int(done.stdout)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail("it still runs")


@pytest.mark.parametrize(("cores", "bytes_free"), [(1, 10**10), (2, 10**9)])
def test_nothing_is_prepared_where_it_would_be_in_the_way(
    monkeypatch: pytest.MonkeyPatch, cores: int, bytes_free: int
) -> None:
    monkeypatch.setattr(child, "usable_cores", lambda: cores)
    monkeypatch.setattr(child, "available_memory_bytes", lambda: bytes_free)
    prepare_child(SOME)
    assert not child._prepared
