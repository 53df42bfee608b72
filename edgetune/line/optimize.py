"""Merged checkpoint → graph, with the calibration text of schemes that need one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.files import digest_of_json
from edgetune.host import usable_cores, versions_of
from edgetune.line.merge import merge_step
from edgetune.line.shared import code_digest, libraries
from edgetune.lock import OPTIMIZE_TOOLS, SEED
from edgetune.optimize.workflow import make_workflow
from edgetune.plan import Plan
from edgetune.step import Step, path_of


def optimize_step(plan: Plan, store: Path) -> Step:
    """Merged checkpoint → flat onnxruntime-genai folder, one a provider and scheme."""
    merge = merge_step(plan)
    workflow = make_workflow(plan.scheme, plan.widths, plan.provider, plan.recipe.kv_cache)
    return Step(
        name="optimize",
        function="edgetune.optimize.optimize:optimize_step",
        arguments={
            "checkpoint": str(path_of(store, merge)),
            "base": _started_from(plan),
            "workflow": workflow,
            "scheme": plan.scheme.name,
            "widths": plan.widths.as_json(),
            "kv_cache": plan.recipe.kv_cache,
            "provider": plan.provider,
            **_calibration(plan),
        },
        inputs={
            "checkpoint": merge.key,
            "base_before": digest_of_json(dict(plan.inputs.before_digests)),
            "provider": plan.provider,
            "scheme": plan.scheme.name,
            "widths": plan.widths.as_json(),
            "workflow": digest_of_json(workflow),
            "code": code_digest("checkpoint", "optimize", "providers"),
            **_calibration_inputs(plan),
            **versions_of(*OPTIMIZE_TOOLS),
        },
        libraries=libraries(
            plan.recipe,
            bool(plan.inputs.base.packed),
            ("edgetune.optimize.optimize", "edgetune.optimize.olive"),
        ),
    )


def _calibration(plan: Plan) -> dict[str, Any]:
    """An argument of the optimize step: what the calibration text is made of."""
    if not plan.calibrated:
        return {}
    data = plan.inputs.calibration
    return {
        "calibration": {
            "task": plan.recipe.task,
            "data": str(data.path) if data else None,
            "seed": SEED,
            "threads": usable_cores(),
            "layered": plan.layered,
            "cache_scales": plan.recipe.kv_cache == "int8",
        }
    }


def _calibration_inputs(plan: Plan) -> dict[str, Any]:
    """A part of the optimize step's key, for a graph that is made with calibration text."""
    if not plan.calibrated:
        return {}
    data = plan.inputs.calibration
    return {
        "calibration": data.digest if data else None,
        "task": plan.recipe.task,
        "seed": SEED,
        "calibration_code": code_digest("reference", "tasks"),
    }


def _started_from(plan: Plan) -> dict[str, Any] | None:
    """The base that the fine-tune changed, as the merge took it; null where it is not named."""
    inputs, trained_as = plan.inputs, plan.recipe.base.trained_as
    if not inputs.adapters:
        before = inputs.before
        return {"path": str(before.path), "trained_as": None} if before else None
    seen = trained_as.model_dump() if trained_as and plan.onto == "dequantized" else None
    return {"path": str(inputs.base.path), "trained_as": seen}
