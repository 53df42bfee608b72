"""The loop that all workers share, in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from edgetune.answering import requests, tell

WORKER = """
import sys
from edgetune.answering import answer_requests, requests, tell
from edgetune.errors import UsageError

def serve(source, sink):
    print("a library's words")
    for request in requests(source):
        if request["do"] == "refuse":
            raise UsageError("not this", "try that")
        if request["do"] == "break":
            raise RuntimeError("it broke")
        tell(sink, request)

sys.exit(answer_requests(serve, "the test's worker"))
"""


def talk(*lines: str) -> tuple[int, list[dict[str, Any]], str]:
    """(exit status, what it answered, its standard error)."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        input="".join(f"{line}\n" for line in lines),
        env={**os.environ, "EDGETUNE_PARENT": str(os.getpid())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_requests_are_answered_until_the_stop() -> None:
    code, answers, errors = talk('{"do": "one"}', '{"stop": true}', '{"do": "two"}')
    assert (code, answers) == (0, [{"do": "one"}])
    assert "a library's words" in errors


@pytest.mark.parametrize(
    ("line", "code", "message", "hint"),
    [
        ('{"do": "refuse"}', 2, "not this", "try that"),
        ('{"do": "break"}', 6, "the test's worker: RuntimeError: it broke", ""),
        ("no json", 6, "the test's worker: JSONDecodeError: Expecting value: line 1", ""),
    ],
)
def test_a_failure_is_told_in_a_line(line: str, code: int, message: str, hint: str) -> None:
    status, (answer,), _ = talk(line)
    assert status == answer["error"]["exit_code"] == code
    assert answer["error"]["message"].startswith(message)
    assert answer["error"]["hint"] == hint


def test_no_answer_holds_what_is_no_number() -> None:
    sink = io.StringIO()
    with pytest.raises(ValueError, match="not JSON compliant"):
        tell(sink, {"ms": float("nan")})
    assert sink.getvalue() == ""
    assert list(requests(io.StringIO(""))) == []
