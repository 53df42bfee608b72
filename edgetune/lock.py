"""What a result depends on, told without a path: `edgetune.lock`, digests, versions, the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.files import digest_of_json
from edgetune.host import versions_of
from edgetune.inputs import Inputs
from edgetune.plan import Plan
from edgetune.step import Step

MERGE_TOOLS = ("edgetune", "torch", "peft", "transformers", "accelerate", "bitsandbytes")
OPTIMIZE_TOOLS = (
    "edgetune",
    "olive-ai",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-genai",
    "torch",
    "transformers",
)
SEED = 0


def make_lock(plan: Plan, shared: Mapping[str, Step], graphs: Mapping[str, Step]) -> dict[str, Any]:
    """`edgetune.lock`: digests of every input file, the recipe without its paths, versions,
    seeds, step keys. Names of folders only: the lock is the same wherever a build runs."""
    recipe, inputs = plan.recipe, plan.inputs
    settings = recipe.model_dump(
        mode="json", exclude={"base", "base_before", "adapters", "data", "devices"}
    )
    trained_as = recipe.base.trained_as.model_dump() if recipe.base.trained_as else None
    evaluation, calibration = inputs.evaluation, inputs.calibration
    return {
        "lock_version": 1,
        "recipe": settings,
        "base": {
            **inputs.base_origin.as_json(),
            "license": inputs.base_origin.license,
            "trained_as": trained_as,
            "files": dict(sorted(inputs.base_digests.items())),
        },
        "base_before": {
            **inputs.before_origin.as_json(),
            "license": inputs.before_origin.license,
            "files": dict(inputs.before_digests),
        }
        if inputs.before_origin
        else None,
        "adapters": [
            {
                **entry.origin.as_json(),
                "license": entry.origin.license,
                "peft_type": entry.adapter.peft_type,
                "use_dora": entry.adapter.use_dora,
                "weight": entry.weight,
                "files": dict(sorted(entry.digests.items())),
            }
            for entry in inputs.adapters
        ],
        "data": {
            "evaluation": evaluation.digest if evaluation else None,
            "calibration": calibration.digest if calibration else None,
            "calibrated_on": _calibrated_on(plan),
        },
        "versions": versions_of(*sorted({*MERGE_TOOLS, *OPTIMIZE_TOOLS})),
        "seeds": {"reference": SEED},
        "steps": {
            **{name: step.key for name, step in shared.items()},
            **{f"optimize {name}": step.key for name, step in sorted(graphs.items())},
        },
    }


def _calibrated_on(plan: Plan) -> str | None:
    """Which text the scheme rounded by, in words; null where it needs none."""
    if not plan.calibrated:
        return None
    given = plan.inputs.calibration is not None
    return "calibration data" if given else "text sampled from the trained model"


def input_digests(inputs: Inputs) -> dict[str, Any]:
    """{input: digest} of base and adapters, with the weights of the latter: a part of step keys."""
    digests: dict[str, Any] = {"base": digest_of_json(dict(inputs.base_digests))}
    for number, entry in enumerate(inputs.adapters, 1):
        digests[f"adapter {number}"] = digest_of_json(dict(entry.digests))
        digests[f"adapter {number} weight"] = entry.weight
    return digests
