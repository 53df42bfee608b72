"""A worker that answers, and every way in which one does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.validate.worker import open_worker

_HEAD = "import json, os, sys, time\nfor line in sys.stdin:\n    m = json.loads(line)\n"


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "some_worker.py"


def test_a_worker_answers_line_by_line_and_stops_when_told(
    worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker.write_text(
        _HEAD
        + "    if m.get('stop'):\n        open('stopped', 'w').close(); break\n"
        + "    print(json.dumps({'twice': 2 * m['n'], 'parent': os.environ['EDGETUNE_PARENT']}))\n"
        + "    sys.stdout.flush()\n"
    )
    with open_worker(["some_worker"]) as opened:
        answer = opened.ask({"n": 2}, 20)
        assert answer == {"twice": 4, "parent": str(os.getpid())}
        assert opened.ask({"n": 5}, 20)["twice"] == 10
    assert (tmp_path / "stopped").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    sys.exit(3)\n", "some_worker ended with status 3"),
        ("    os.kill(os.getpid(), 9)\n", "some_worker was killed by signal 9"),
        ("    print('hello', flush=True)\n", "said 'hello', expected JSON"),
        ("    print('[1]', flush=True)\n", r"said \[1\], expected an object"),
        ("    time.sleep(60)\n", "no answer in 1 s"),
    ],
)
def test_a_worker_that_fails_is_named(worker: Path, body: str, message: str) -> None:
    worker.write_text(_HEAD + body)
    patience = 1 if "sleep" in body else 20
    with open_worker(["some_worker"]) as opened:
        with pytest.raises(StepFailedError, match=message):
            opened.ask({"n": 1}, patience)
        opened._process.kill()


def test_an_error_that_a_worker_reports_keeps_its_class(worker: Path) -> None:
    error = "{'error': {'exit_code': 4, 'message': 'not a package', 'hint': 'copy it'}}"
    worker.write_text(_HEAD + f"    print(json.dumps({error}), flush=True)\n")
    with (
        open_worker(["some_worker"]) as opened,
        pytest.raises(InputRefusedError, match="not a package") as caught,
    ):
        opened.ask({"n": 1}, 20)
    assert caught.value.hint == "copy it"


def test_a_module_that_is_not_there_ends(worker: Path) -> None:
    with (
        open_worker(["no_such_worker_module"]) as opened,
        pytest.raises(StepFailedError, match="ended with status 1"),
    ):
        opened.ask({}, 20)
