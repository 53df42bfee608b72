"""What a recipe names, resolved: local folders, digests, and where each came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgetune.checkpoint.adapter import Adapter
from edgetune.checkpoint.combination import merge_warnings
from edgetune.checkpoint.folder import CheckpointFolder


@dataclass(frozen=True)
class Origin:
    """What an input is called: a folder's name; or a hub id, the revision that was asked for, and
    the commit that it was. `license`: what its folder says of it (`sources/license.py`)."""

    name: str
    revision: str | None = None
    commit: str | None = None
    license: Mapping[str, str | None] | None = None

    def as_json(self) -> dict[str, str]:
        """For the lock: nothing but the name of a folder."""
        if self.commit is None:
            return {"name": self.name}
        return {"name": self.name, "revision": self.revision or "main", "commit": self.commit}


@dataclass(frozen=True)
class AdapterInput:
    """An adapter folder, read and digested, with the weight of its delta."""

    adapter: Adapter
    weight: float
    digests: Mapping[str, str]
    origin: Origin


@dataclass(frozen=True)
class DataInput:
    """A data file, read and digested."""

    path: Path
    items: int
    digest: str
    # Whether an item is a chat, which takes a chat template.
    chats: bool = False


@dataclass(frozen=True)
class Inputs:
    """Everything a recipe names, resolved to local folders and digests."""

    base: CheckpointFolder
    base_digests: Mapping[str, str]
    base_origin: Origin
    adapters: tuple[AdapterInput, ...] = ()
    before: CheckpointFolder | None = None
    before_digests: Mapping[str, str] = field(default_factory=dict)
    before_origin: Origin | None = None
    evaluation: DataInput | None = None
    calibration: DataInput | None = None
    # What makes a measurement on the evaluation data weaker than it looks.
    data_warnings: tuple[str, ...] = ()


def warnings_of(inputs: Inputs) -> list[str]:
    """What is odd about the inputs but does not stop a build."""
    found = merge_warnings(inputs.base, [entry.adapter for entry in inputs.adapters])
    return [*found, *inputs.data_warnings]
