"""One file a task: its data fields, its pre- and post-processing, its metrics.

Name = file: the task `text-generation`, named as Hugging Face's pipelines are, is
`tasks/text_generation.py`. Files whose name begins with an underscore are no tasks. Nothing here
imports more than numpy and the standard library: a plan and a device read tasks too.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from edgetune.errors import UsageError


class Task(Protocol):
    """What the module of every task offers."""

    # The form its graph is exported and run in, and the transformers class that loads it.
    FORM: str
    AUTO_MODEL: str
    # {metric: whether more of it is better}
    HIGHER_IS_BETTER: Mapping[str, bool]

    def load_items(self, path: Path) -> Sequence[Any]:
        """The items of a JSON lines file; UsageError lists what is wrong with which line."""
        ...

    def texts(self, items: Sequence[Any]) -> dict[int, str]:
        """{line: all that a row says}, for comparing rows of two files."""
        ...

    def measure(
        self, expected: str | None, answer: str | None, target_logprobs: Sequence[float]
    ) -> dict[str, float | None]:
        """{metric: its value for one item, null where the item has none}."""
        ...


def task_names() -> list[str]:
    """The names of all tasks, sorted."""
    files = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name.replace("_", "-") for name in files if not name.startswith("_"))


def load_task(name: str) -> Task:
    """The module of a task. Raises UsageError for an unknown name."""
    names = task_names()
    if name not in names:
        close = difflib.get_close_matches(name.replace("_", "-").lower(), names, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]!r}? " if close else ""
        msg = f"unknown task {name!r}"
        raise UsageError(msg, f"{meant}known tasks: {', '.join(names)}")
    return cast("Task", importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
