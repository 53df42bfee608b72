"""The only printer: progress and messages on stderr, results on stdout, nothing else prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from edgetune.errors import EdgetuneError, printable

if TYPE_CHECKING:
    from rich.console import Console


_LOG_COLUMNS = 132  # without a terminal rich assumes 80 and would fold figures; a log has room
_ANY_COLUMNS = 1000


def _rich(stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_LOG_COLUMNS)
    return console


def print_error(error: EdgetuneError) -> None:
    """`error: …` then `hint: …`, on stderr."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def print_note(text: str) -> None:
    """One line for the person who waits, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def print_warning(text: str) -> None:
    """`warning: …` on stderr."""
    print_note(f"warning: {text}")


def print_result(text: str, end: str = "\n") -> None:
    """A result, on stdout."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """One JSON document, on stdout."""
    from edgetune.files import dump_json

    print_result(dump_json(value), end="")


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    figures: bool = False,
    whole: bool = False,
) -> None:
    """A table on stdout, of text or (right-justified after the first column) of figures; cells
    that read pass, fail or inconclusive are coloured on a terminal. `whole`: no cell is folded; a
    terminal that is too narrow wraps the row instead."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if figures and number else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=whole)
    styles = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    console = _rich(stderr=False)
    if whole:
        console.width = max(console.width, _ANY_COLUMNS)
    console.print(table)


class StepProgress:
    """Live progress of one step; a plain line at start and end when stderr is no terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()
        self._status: Any = None
        self._console = _rich(stderr=True)

    def start(self) -> None:
        """Show that the step runs."""
        if self._console.is_terminal:
            self._status = self._console.status(f"{self._name:<10} …")
            self._status.start()
        else:
            print_note(f"{self._name:<10} …")

    def update(self, message: str) -> None:
        """Show what the step does now."""
        if self._status is not None:
            seconds = time.monotonic() - self._started
            self._status.update(f"{self._name:<10} {message}  ({seconds:.0f} s)")

    def stop(self, message: str = "") -> None:
        """End the live line; `message` stays."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if message:
            print_note(f"{self._name:<10} {message}")


@contextmanager
def step_progress(name: str) -> Iterator[StepProgress]:
    """A StepProgress whose live line ends with the block, whatever happens in it."""
    progress = StepProgress(name)
    progress.start()
    try:
        yield progress
    finally:
        progress.stop()
