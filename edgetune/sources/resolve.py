"""Everything a recipe names, found and digested; what cannot be found is listed, not raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgetune.checkpoint.adapter import PICKLE_FILE
from edgetune.checkpoint.folder import CheckpointFolder, is_pickled, read_checkpoint
from edgetune.errors import EdgetuneError, Problem, UsageError
from edgetune.files import sha256_of_file
from edgetune.plan import AdapterInput, DataInput, Inputs
from edgetune.recipe import AdapterRef, Recipe
from edgetune.sources.huggingface import find_checkpoint
from edgetune.sources.peft_adapter import find_adapter
from edgetune.sources.pickles import adapter_from_pickle, checkpoint_from_pickle
from edgetune.tasks import load_task

_Found = TypeVar("_Found")


def resolve(recipe: Recipe, pickles: Path | None = None) -> tuple[Inputs | None, list[Problem]]:
    """The inputs of a recipe (None without a usable base) and every problem met on the way.

    Pickled weights are converted into the folder `pickles`; without one they are a problem.
    """
    problems: list[Problem] = []

    def attempt(find: Callable[[], _Found]) -> _Found | None:
        try:
            return find()
        except EdgetuneError as why:
            problems.append(Problem(why.message, why.hint, why.exit_code))
        except OSError as why:
            problems.append(Problem(f"cannot be read: {why}", "check the path and its rights", 4))
        return None

    base = attempt(lambda: _read_base(recipe.base.path, recipe.base.revision, pickles))
    before_path = recipe.base_before
    before = (
        attempt(lambda: _read_base(before_path, None, pickles)) if before_path is not None else None
    )
    adapters = [
        adapter
        for reference in recipe.adapters
        if (adapter := attempt(partial(_read_adapter, reference, pickles))) is not None
    ]
    evaluation = attempt(lambda: _read_data(recipe.task, recipe.data.evaluation, "evaluation"))
    calibration = attempt(lambda: _read_data(recipe.task, recipe.data.calibration, "calibration"))
    if base is None:
        return None, problems
    inputs = Inputs(
        base=base[0],
        base_digests=base[1],
        adapters=tuple(adapters),
        before=before[0] if before else None,
        before_digests=before[1] if before else {},
        evaluation=evaluation,
        calibration=calibration,
    )
    return inputs, problems


def _read_base(
    path: str, revision: str | None, pickles: Path | None
) -> tuple[CheckpointFolder, dict[str, str]]:
    folder = find_checkpoint(path, revision)
    if pickles is not None and is_pickled(folder):
        return checkpoint_from_pickle(folder, pickles)
    checkpoint = read_checkpoint(folder)
    return checkpoint, _digests(checkpoint.path, checkpoint.files)


def _read_adapter(reference: AdapterRef, pickles: Path | None) -> AdapterInput:
    adapter = find_adapter(reference.path, pickled=pickles is not None)
    if pickles is not None and PICKLE_FILE in adapter.files:
        adapter, digests = adapter_from_pickle(adapter.path, pickles)
    else:
        digests = _digests(adapter.path, adapter.files)
    return AdapterInput(adapter, reference.weight, digests)


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: sha256_of_file(folder / name) for name in sorted(names)}


def _read_data(task: str, path: str | None, role: str) -> DataInput | None:
    if path is None:
        # An unknown task is a problem with and without data.
        load_task(task)
        return None
    try:
        items = load_task(task).load_items(Path(path))
    except UsageError as why:
        msg = f"{role} data: {why.message}"
        raise UsageError(msg, why.hint) from why
    chats = any(getattr(item, "kind", None) == "chat" for item in items)
    return DataInput(Path(path).resolve(), len(items), sha256_of_file(Path(path)), chats)
