"""A child process that measures, spoken to in JSON lines over its standard input and output."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from edgetune.child import python_path
from edgetune.errors import StepFailedError, error_from_code


class Worker:
    """One side of the latency measurement. Ends with the block of `open_worker`."""

    def __init__(self, module: str, process: subprocess.Popen[bytes]) -> None:
        self.module = module
        self._process = process
        self._rest = b""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one line. A worker that has ended is noticed when its answer is read."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def hear(self, timeout_s: float) -> Mapping[str, Any]:
        """The next line. Raises the error that the worker reports; StepFailedError when it ends
        or stays silent."""
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, until - time.monotonic())):
                    msg = f"{self.module}: no answer in {timeout_s:.0f} s"
                    raise StepFailedError(msg, "close other programs, or give a smaller model")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise self._ended()
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as why:
            msg = f"{self.module}: said {line[:200].decode(errors='replace')!r}, expected JSON"
            raise StepFailedError(msg) from why
        if not isinstance(answer, dict):
            msg = f"{self.module}: said {answer!r}, expected an object"
            raise StepFailedError(msg)
        if "error" in answer:
            error = answer["error"]
            raise error_from_code(error["exit_code"], error["message"], error["hint"])
        return answer

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """Send one line and return the answer."""
        self.tell(message)
        return self.hear(timeout_s)

    def _ended(self) -> StepFailedError:
        code = self._process.wait()
        what = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return StepFailedError(f"{self.module} {what}", "the step's log has its last words")


@contextmanager
def open_worker(command: Sequence[str]) -> Iterator[Worker]:
    """Start `python -m <command>`; asked to stop, then killed, when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **python_path(), "EDGETUNE_PARENT": str(os.getpid())},
    )
    worker = Worker(command[0], process)
    try:
        yield worker
    finally:
        worker.tell({"stop": True})
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
