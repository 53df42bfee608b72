"""Everything a recipe names, found and digested; what cannot be found is listed, not raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import normpath
from pathlib import Path
from typing import TypeVar

from edgetune.checkpoint.folder import CheckpointFolder, read_checkpoint
from edgetune.errors import EdgetuneError, InputRefusedError, MissingError, Problem, UsageError
from edgetune.files import sha256_of_file
from edgetune.plan import AdapterInput, DataInput, Inputs, Origin
from edgetune.recipe import Base, Recipe
from edgetune.sources.huggingface import find_checkpoint
from edgetune.sources.peft_adapter import find_adapter
from edgetune.tasks import load_task

_Found = TypeVar("_Found")


def resolve(recipe: Recipe) -> tuple[Inputs | None, list[Problem]]:
    """The inputs of a recipe (None without a usable base) and every problem met on the way."""
    problems: list[Problem] = []

    def attempt(find: Callable[[], _Found]) -> _Found | None:
        try:
            return find()
        except EdgetuneError as why:
            problems.append(Problem(why.message, why.hint, why.exit_code))
        except OSError as why:
            problems.append(Problem(f"cannot be read: {why}", "check the path and its rights", 4))
        return None

    base = attempt(lambda: _read_base(recipe.base))
    before_path = recipe.base_before
    before = attempt(lambda: _read_checkpoint(before_path)) if before_path is not None else None
    adapters = [
        AdapterInput(adapter, reference.weight, _digests(adapter.path, adapter.files), origin)
        for reference in recipe.adapters
        if (found := attempt(lambda r=reference: find_adapter(r.path, r.revision)))  # type: ignore[misc]
        for adapter, origin in [found]
    ]
    evaluation = attempt(lambda: _read_data(recipe.task, recipe.data.evaluation, "evaluation"))
    calibration = attempt(lambda: _read_data(recipe.task, recipe.data.calibration, "calibration"))
    if base is None:
        return None, problems
    inputs = Inputs(
        base=base[0],
        base_digests=_checkpoint_digests(base[0]),
        base_origin=base[1],
        adapters=tuple(adapters),
        before=before[0] if before else None,
        before_digests=_checkpoint_digests(before[0]) if before else {},
        before_origin=before[1] if before else None,
        evaluation=evaluation,
        calibration=calibration,
    )
    return inputs, problems


def _read_base(base: Base) -> tuple[CheckpointFolder, Origin]:
    """The base. Raises MissingError where it is one to be made first, and is not."""
    if base.made_by is not None and not Path(base.path).is_dir():
        msg = f"{normpath(base.path)}: the recipe's base is not here; it is made, not shipped"
        raise MissingError(msg, f"make it: {base.made_by}")
    return _read_checkpoint(base.path, base.revision)


def _read_checkpoint(path: str, revision: str | None = None) -> tuple[CheckpointFolder, Origin]:
    found = find_checkpoint(path, revision)
    try:
        return read_checkpoint(found.folder), found.origin
    except InputRefusedError as why:
        if found.origin.commit is None:
            raise
        # The hub's cache keeps no list of a snapshot that an older version began to download.
        hint = f"{why.hint}; if a download broke off, delete {found.folder} and download it again"
        raise InputRefusedError(why.message, hint) from why


def _checkpoint_digests(checkpoint: CheckpointFolder) -> dict[str, str]:
    return _digests(checkpoint.path, checkpoint.files)


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
    return DataInput(Path(path).resolve(), len(items), sha256_of_file(Path(path)))
