"""Every error a user can meet: one class an exit code, a sentence that says what, where and why,
and a hint that says what to do.

Exit codes: 0 pass, 1 gate or tolerance failed, 2 usage, 3 environment lacks something, 4 input
refused, 5 inconclusive, 6 a build step failed, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PASS = 0
GATE_FAILED = 1
USAGE = 2
ENVIRONMENT = 3
INPUT_REFUSED = 4
INCONCLUSIVE = 5
STEP_FAILED = 6
INTERRUPTED = 130


_MOST_CHARACTERS = 2000  # of a line


def printable(text: str) -> str:
    """Text that a terminal shows as it is: messages quote names out of untrusted files.

    Control characters and halves of surrogate pairs are escaped, long lines cut.

    >>> printable("\x1b[2J gone")
    '\\x1b[2J gone'
    """
    lines = text.split("\n")
    if any(len(line) > _MOST_CHARACTERS for line in lines):
        text = "\n".join(
            line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"
            for line in lines
        )
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


class EdgetuneError(Exception):
    """An error with a message for the user, a hint, and the exit code of its class."""

    exit_code = STEP_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = printable(message)
        self.hint = printable(hint)
        super().__init__(self.message)


class UsageError(EdgetuneError):
    """The command, recipe, device or scheme asks for something that cannot be."""

    exit_code = USAGE


class MissingError(EdgetuneError):
    """This environment lacks a library, tool, host, memory or disk space."""

    exit_code = ENVIRONMENT


class InputRefusedError(EdgetuneError):
    """An input is corrupt, truncated, unsafe, unsupported or belongs to another base."""

    exit_code = INPUT_REFUSED


class StepFailedError(EdgetuneError):
    """A build step failed or missed parity."""

    exit_code = STEP_FAILED


@dataclass(frozen=True)
class Problem:
    """One reason why a plan cannot be built; `make_plan` collects all of them."""

    message: str
    hint: str = ""
    exit_code: int = USAGE


class PlanError(EdgetuneError):
    """Every problem of a plan at once. The exit code is the gravest: 4, then 3, then 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message, hint = self.problems[0].message, self.problems[0].hint
        else:
            lines = [
                f"  {n}. {p.message}" + (f"\n     hint: {p.hint}" if p.hint else "")
                for n, p in enumerate(self.problems, 1)
            ]
            message = f"{len(self.problems)} problems, nothing was started:\n" + "\n".join(lines)
            hint = ""
        super().__init__(message, hint)
        codes = {p.exit_code for p in self.problems}
        self.exit_code = next(c for c in (INPUT_REFUSED, ENVIRONMENT, USAGE) if c in codes)


def error_from_code(exit_code: int, message: str, hint: str) -> EdgetuneError:
    """The error that a child process reported, as the class of its exit code."""
    for kind in (UsageError, MissingError, InputRefusedError):
        if kind.exit_code == exit_code:
            return kind(message, hint)
    return StepFailedError(message, hint)
