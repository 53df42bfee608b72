"""A child process that measures, spoken to in JSON lines over its standard input and output."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from edgetune.child import python_path
from edgetune.errors import StepFailedError, error_from_code


class Worker:
    """One side of the latency measurement. Ends with the block of `open_worker`."""

    def __init__(
        self, module: str, process: subprocess.Popen[bytes], log: Path | None = None
    ) -> None:
        self.module = module
        self._process = process
        self._log = log
        self._rest = b""

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

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
        if self._log is None:
            return StepFailedError(f"{self.module} {what}", "the step's log has its last words")
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        words = f"; its last words: {lines[-1][:300]}" if lines else ""
        return StepFailedError(f"{self.module} {what}{words}")


@contextmanager
def open_worker(
    command: Sequence[str],
    python: Sequence[str] = (sys.executable, "-P"),
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[Worker]:
    """Start `<python> -m <command>`; asked to stop, then killed, when the block ends; killed at
    once when it ends by an error or Ctrl-C.

    `environment`: all of it, with the PYTHONPATH that finds edgetune; this process's own by
    default. `log`: where its errors go.
    """
    if environment is None:
        environment = {**os.environ, **python_path()}
    with log.open("wb") if log else nullcontext() as errors:
        process = subprocess.Popen(
            [*python, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**environment, "EDGETUNE_PARENT": str(os.getpid())},
        )
    worker = Worker(command[0], process, log)
    try:
        yield worker
    except BaseException:
        # It may be busy for long, an emulated one above all, and nobody waits for its answer.
        process.kill()
        raise
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
