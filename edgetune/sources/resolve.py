"""Everything a recipe names, found and digested; what cannot be found is listed, not raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from os.path import normpath
from pathlib import Path
from typing import TypeVar

from edgetune.checkpoint.adapter import PICKLE_FILE
from edgetune.checkpoint.folder import CheckpointFolder, is_pickled, read_checkpoint
from edgetune.errors import EdgetuneError, InputRefusedError, MissingError, Problem
from edgetune.files import is_folder, sha256_of_file
from edgetune.inputs import AdapterInput, Inputs, Origin
from edgetune.recipe import AdapterRef, Base, Recipe
from edgetune.sources.data import data_warnings, overlap_problem, read_data
from edgetune.sources.huggingface import find_checkpoint, hub_refusal
from edgetune.sources.license import read_license
from edgetune.sources.peft_adapter import find_adapter
from edgetune.sources.pickles import adapter_from_pickle, checkpoint_from_pickle

_Found = TypeVar("_Found")
_Checkpoint = tuple[CheckpointFolder, dict[str, str], Origin]


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

    base = attempt(lambda: _read_base(recipe.base, pickles))
    before_path = recipe.base_before
    before = (
        attempt(lambda: _read_checkpoint(before_path, None, pickles))
        if before_path is not None
        else None
    )
    adapters = [
        adapter
        for reference in recipe.adapters
        if (adapter := attempt(partial(_read_adapter, reference, pickles))) is not None
    ]
    evaluation = attempt(lambda: read_data(recipe.task, recipe.data.evaluation, "evaluation"))
    calibration = attempt(lambda: read_data(recipe.task, recipe.data.calibration, "calibration"))
    if evaluation and calibration and (problem := overlap_problem(evaluation, calibration)):
        problems.append(problem)
    if base is None:
        return None, problems
    inputs = Inputs(
        base=base[0],
        base_digests=base[1],
        base_origin=base[2],
        adapters=tuple(adapters),
        before=before[0] if before else None,
        before_digests=before[1] if before else {},
        before_origin=before[2] if before else None,
        evaluation=evaluation.plan if evaluation else None,
        calibration=calibration.plan if calibration else None,
        data_warnings=tuple(data_warnings(evaluation, recipe.tolerances)) if evaluation else (),
    )
    return inputs, problems


def _read_base(base: Base, pickles: Path | None) -> _Checkpoint:
    """The base. Raises MissingError where it is one to be made first, and is not."""
    if base.made_by is not None and not is_folder(Path(base.path)):
        msg = f"{normpath(base.path)}: the recipe's base is not here; it is made, not shipped"
        raise MissingError(msg, f"make it: {base.made_by}")
    return _read_checkpoint(base.path, base.revision, pickles)


def _read_checkpoint(path: str, revision: str | None, pickles: Path | None) -> _Checkpoint:
    found = find_checkpoint(path, revision, pickled=pickles is not None)
    try:
        if pickles is not None and is_pickled(found.folder):
            checkpoint, digests = checkpoint_from_pickle(found.folder, pickles, found.origin.name)
        else:
            checkpoint = read_checkpoint(found.folder)
            digests = _digests(checkpoint.path, checkpoint.files)
    except InputRefusedError as why:
        raise hub_refusal(why, found, pickled=pickles is not None) from why
    said = read_license(found.folder).as_json()
    return checkpoint, digests, replace(found.origin, license=said)


def _read_adapter(reference: AdapterRef, pickles: Path | None) -> AdapterInput:
    adapter, origin = find_adapter(reference.path, reference.revision, pickled=pickles is not None)
    origin = replace(origin, license=read_license(adapter.path).as_json())
    if pickles is not None and PICKLE_FILE in adapter.files:
        adapter, digests = adapter_from_pickle(adapter.path, pickles, origin.name)
    else:
        digests = _digests(adapter.path, adapter.files)
    return AdapterInput(adapter, reference.weight, digests, origin)


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: sha256_of_file(folder / name) for name in sorted(names)}
