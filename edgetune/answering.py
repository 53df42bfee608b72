"""The child's side of `validate.worker`: requests come in as JSON lines, answers go out as such.

A worker's first line in says what to open, the following ones what to do; {"stop": true} or the end
of input ends it. A failure is answered by {"error": {"exit_code", "message", "hint"}}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from edgetune.child import die_with_parent
from edgetune.errors import STEP_FAILED, EdgetuneError


def tell(sink: TextIO, message: Mapping[str, Any]) -> None:
    """Write one line. Raises ValueError for a number that is not finite."""
    sink.write(json.dumps(message, allow_nan=False) + "\n")
    sink.flush()


def requests(source: TextIO) -> Iterator[Mapping[str, Any]]:
    """The lines that are left, until {"stop": true} or the end of input."""
    for line in source:
        request = json.loads(line)
        if request.get("stop"):
            return
        yield request


def answer_requests(serve: Callable[[TextIO, TextIO], None], what: str) -> int:
    """Let `serve(source, sink)` answer standard input on standard output; returns the exit status.

    Whatever a library prints goes to standard error. `what`: whose error is told when another one
    than edgetune's own is raised. The process ends with the parent, whose id is in EDGETUNE_PARENT.
    """
    die_with_parent()
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, sink)
    except EdgetuneError as why:
        code, message, hint = why.exit_code, why.message, why.hint
    except Exception as why:
        traceback.print_exc()
        code, message, hint = STEP_FAILED, f"{what}: {type(why).__name__}: {why}", ""
    else:
        return 0
    tell(sink, {"error": {"exit_code": code, "message": message, "hint": hint}})
    return code
