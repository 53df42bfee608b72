"""A recipe's data files: read, digested, and kept apart.

What a scheme was calibrated on, a package does well on: calibration and evaluation items that are
the same, or nearly, are a problem of the plan. numpy is loaded where there are rows to compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.errors import Problem, UsageError
from edgetune.files import sha256_of_file
from edgetune.inputs import DataInput
from edgetune.recipe import Tolerances
from edgetune.report.questions import FEWEST_ITEMS
from edgetune.tasks import load_task

if TYPE_CHECKING:
    from edgetune.sources.overlap import Match

_MOST_SHOWN = 5


@dataclass(frozen=True)
class DataFile:
    """A data file: what a plan keeps of it, its items, and {line: text} of its rows."""

    plan: DataInput
    items: Sequence[Any]
    texts: dict[int, str]


def read_data(task: str, path: str | None, role: str) -> DataFile | None:
    """A file of items; None where none is named. Raises UsageError for an unknown task or a file
    that holds no items of it."""
    module = load_task(task)
    if path is None:
        return None
    try:
        items = module.load_items(Path(path))
    except UsageError as why:
        msg = f"{role} data: {why.message}"
        raise UsageError(msg, why.hint) from why
    chats = any(getattr(item, "kind", None) == "chat" for item in items)
    plan = DataInput(Path(path).resolve(), len(items), sha256_of_file(Path(path)), chats)
    return DataFile(plan, items, module.texts(items))


def overlap_problem(evaluation: DataFile, calibration: DataFile) -> Problem | None:
    """The problem of rows that are in both files; None where there are none."""
    from edgetune.sources.overlap import matches

    found = matches(evaluation.texts, calibration.texts)
    if not found:
        return None
    rows = f"{len(found)} of {len(evaluation.texts)} rows of the evaluation data"
    return Problem(
        f"{evaluation.plan.path}: {rows} are in the calibration data too: "
        + _listed(found, str(calibration.plan.path)),
        "take these rows out of one of the two files: a package does well on what it was "
        "calibrated on",
    )


def data_warnings(evaluation: DataFile, tolerances: Tolerances) -> Iterator[str]:
    """What makes a measurement on this data weaker than it looks."""
    from edgetune.sources.overlap import repeats
    from edgetune.statistics import items_needed

    path = evaluation.plan.path
    found = repeats(evaluation.texts)
    if found:
        yield (
            f"{path}: {len(found)} of {len(evaluation.texts)} rows repeat earlier ones: "
            f"{_listed(found)}; repeats make the bounds narrower than they are"
        )
    answers = sum(getattr(item, "answer", None) is not None for item in evaluation.items)
    drop = tolerances.task_metric_drop
    if len(evaluation.items) < FEWEST_ITEMS:
        yield (
            f"{path}: {len(evaluation.items)} items are too few to decide anything, "
            f"{FEWEST_ITEMS} are the least: the verdict will be inconclusive"
        )
    elif answers and drop and answers < items_needed(drop):
        yield (
            f"{path}: {answers} items with an expected answer cannot exclude a loss of "
            f"{100 * drop:g} points (task_metric_drop): that takes {items_needed(drop)} when no "
            "answer changes, and more when some do"
        )


def _listed(found: Sequence[Match], other: str = "") -> str:
    """`line 5 is line 9 of FILE, line 7 nearly line 2 (0.93 alike)`, and how many more."""
    of = f" of {other}" if other else ""
    parts = []
    for number, match in enumerate(found[:_MOST_SHOWN]):
        place = f"line {match.other_line}{of if number == 0 else ''}"
        near = match.likeness < 1
        # Cut, not rounded: what is nearly alike is never shown as 1.00.
        alike = f" ({int(100 * match.likeness) / 100:.2f} alike)" if near else ""
        parts.append(f"line {match.line} is {'nearly ' if near else ''}{place}{alike}")
    more = len(found) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")
