"""The straight line as steps: what each one is given, and what its result depends on.

Pure: from plans and the output folder to `Step`s. A step's `inputs` are its key; its `arguments`
are what the child gets, paths included, which no key may contain. One file a step, or two that
belong together.
"""

from __future__ import annotations

from edgetune.line.merge import merge_libraries, merge_step, merge_steps, settled
from edgetune.line.optimize import optimize_step
from edgetune.line.package import package_step, trained_parameters
from edgetune.line.reference import reference_step, sensitivity_step
from edgetune.line.shared import CALIBRATION_SEED, code_digest
from edgetune.line.validate import validate_step

STEPS = ("merge", "reference", "optimize", "package", "validate")

__all__ = [
    "CALIBRATION_SEED",
    "STEPS",
    "code_digest",
    "merge_libraries",
    "merge_step",
    "merge_steps",
    "optimize_step",
    "package_step",
    "reference_step",
    "sensitivity_step",
    "settled",
    "trained_parameters",
    "validate_step",
]
