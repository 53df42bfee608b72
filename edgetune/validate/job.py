"""What a validation is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.runtime.manifest import Manifest, Variant

if TYPE_CHECKING:
    from edgetune.environments.emulator import Emulation


@dataclass(frozen=True)
class Job:
    """What is validated, for which device, and what else is at hand."""

    identifier: str
    device: str
    # Whether this host is that device, or one of the class it stands for.
    here: bool
    threads: int
    variant: Variant
    # The reference step's folder and the merged checkpoint: whole-vocabulary KL, torch's latency.
    reference: Path | None = None
    checkpoint: Path | None = None
    # The items are the reference's, the package carries none of them, and no report may.
    private_data: bool = False
    merge: Mapping[str, Any] | None = None
    # What the optimize step found to be left of each module's fine-tune.
    survival: Mapping[str, Any] | None = None
    evidence: Mapping[str, bool] | None = None
    steps: tuple[Mapping[str, Any], ...] = ()
    # The processor to emulate as well, else why there is none; both null: nothing to emulate.
    emulation: Emulation | None = None
    not_emulated: str | None = None
    # Whether an emulator that fails ends the validation, or is reported as "not measured".
    must_emulate: bool = False
    # Whether to take minutes for what seconds cannot tell.
    thorough: bool = False


def self_test_folder(manifest: Manifest, job: Job) -> Path:
    """Where the items are: in the package, or where they are private with the reference."""
    if job.private_data and job.reference is not None:
        return job.reference / "self_test"
    return manifest.path / "self_test"
