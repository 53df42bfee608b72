from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError, MissingError, StepFailedError
from edgetune.step import (
    Step,
    find_done,
    folder_of,
    is_ours,
    open_store,
    read_record,
    run_step,
    why_not_done,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return open_store(tmp_path / "out")


def step_of(function: str, **arguments: Any) -> Step:
    return Step("merge", f"tests.child_steps:{function}", arguments, {"words": "1"})


def test_a_step_runs_once_and_is_found_done(store: Path) -> None:
    step = step_of("write_words", words="a b c")
    first = run_step(step, store)
    again = run_step(step, store)
    assert (first.cached, again.cached) == (False, True)
    assert first.facts == again.facts == {"count": 3}
    assert first.peak_rss_mb is not None
    assert 1 < first.peak_rss_mb < 500
    record = read_record(folder_of(store, step))
    assert record is not None
    assert list(record.files) == ["sub/pid.txt", "words.txt"]


def test_another_input_is_another_step_and_says_why(store: Path) -> None:
    step = step_of("write_words", words="a")
    assert why_not_done(store, step) == "not built yet"
    run_step(step, store)
    other = Step("merge", step.function, step.arguments, {"words": "2"})
    assert other.key != step.key
    assert find_done(store, other) is None
    assert why_not_done(store, other) == "changed: words"


def test_a_flipped_byte_is_noticed_and_the_step_redone(store: Path) -> None:
    step = step_of("write_words", words="abc")
    path = Path(run_step(step, store).path) / "words.txt"
    path.write_text("abd")
    assert find_done(store, step) is None
    assert why_not_done(store, step) == "its files changed since it was built"
    assert run_step(step, store).cached is False
    assert path.read_text() == "abc"


@pytest.mark.parametrize("damage", ["extra", "missing", "record"])
def test_other_damage_is_noticed_too(store: Path, damage: str) -> None:
    step = step_of("write_words", words="abc")
    folder = Path(run_step(step, store).path)
    if damage == "extra":
        (folder / "extra").write_text("x")
    elif damage == "missing":
        (folder / "words.txt").unlink()
    else:
        (folder / "step.json").write_text('{"name": "merge"')
    assert find_done(store, step) is None
    assert run_step(step, store).cached is False


def test_a_reported_error_keeps_its_class_and_leaves_no_folder(store: Path) -> None:
    with pytest.raises(InputRefusedError, match="the input is bad") as caught:
        run_step(step_of("refuse"), store)
    assert caught.value.hint == "bring a better one"
    assert not list(store.glob("merge-*"))
    assert not list(store.glob(".tmp-*"))


def test_a_crash_tells_its_last_words_and_the_log(store: Path) -> None:
    with pytest.raises(StepFailedError, match=r"killed by signal 9.*about to die") as caught:
        run_step(step_of("crash"), store)
    assert "logs/merge-" in caught.value.hint


def test_an_unexpected_error_is_a_failed_step(store: Path) -> None:
    with pytest.raises(StepFailedError, match="ZeroDivisionError"):
        run_step(step_of("fail"), store)


def test_a_full_disk_is_an_environment_that_lacks_something(store: Path) -> None:
    with pytest.raises(MissingError, match="disk is full"):
        run_step(step_of("fill_disk"), store)
    assert not list(store.glob(".tmp-*"))


def test_a_payload_lies_outside_the_store_and_is_checked_there(store: Path) -> None:
    place = store.parent / "demo"
    step = replace_payload(step_of("write_words", words="a"), place)
    assert run_step(step, store).path == str(place)
    (place / "reports").mkdir()
    (place / "reports" / "x.md").write_text("x")
    assert run_step(step, store).cached
    (place / "words.txt").write_text("b")
    assert not run_step(step, store).cached
    assert (place / "words.txt").read_text() == "a"


def replace_payload(step: Step, place: Path) -> Step:
    return replace(step, payload=place, payload_without=("reports",))


def test_reuse_may_decline_a_done_step(store: Path) -> None:
    step = step_of("write_words", words="a")
    run_step(step, store)
    assert run_step(step, store, reuse=lambda record: record.facts["count"] == 2).cached is False


def test_two_builds_at_once_run_a_step_once(store: Path, tmp_path: Path) -> None:
    step = step_of("count_run", counter=str(tmp_path / "counter"))
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(run_step(step, store).cached))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]
    assert (tmp_path / "counter").read_text() == "x"


def test_kill_nine_takes_the_child_along_and_a_rerun_clears_up(store: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = (
        "from pathlib import Path; from tests.test_step import step_of; "
        "from edgetune.step import run_step; "
        f"run_step(step_of('sleep', started={str(started)!r}), Path({str(store)!r}))"
    )
    build = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(started.exists)
    child = int(wait_for(started.read_text))
    build.send_signal(signal.SIGKILL)
    build.wait()
    wait_for(lambda: not alive(child))
    assert list(store.glob(".tmp-*")), "the kill came too late to leave anything"
    run_step(step_of("write_words", words="a"), store)
    assert not list(store.glob(".tmp-*"))


def test_interrupt_kills_the_child_and_leaves_nothing(store: Path, tmp_path: Path) -> None:
    # Under a shell's `&` or nohup SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = tmp_path / "started"
    step = step_of("sleep", started=str(started))

    def interrupt() -> None:
        wait_for(started.exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_step(step, store)
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert not alive(int(started.read_text()))
    assert not list(store.glob(".tmp-*"))


def test_only_our_own_folders_are_ours(tmp_path: Path, store: Path) -> None:
    assert is_ours(tmp_path / "absent")
    assert is_ours(store.parent)
    (tmp_path / "empty").mkdir()
    assert is_ours(tmp_path / "empty")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mine.txt").write_text("mine")
    assert not is_ours(tmp_path / "theirs")
    assert not is_ours(tmp_path / "theirs" / "mine.txt")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Any, seconds: float = 20) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_nothing_is_imported_from_where_the_user_stands(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    for name in ("json.py", "torch.py", "edgetune.py"):
        (tmp_path / name).write_text(f"open({str(mark)!r}, 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    assert run_step(step_of("write_words", words="a b"), store).facts == {"count": 2}
    assert not mark.exists()
