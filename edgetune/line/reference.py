"""What is measured in torch: the trained model's answers, and what each module costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from edgetune.files import digest_of_json
from edgetune.host import usable_cores, versions_of
from edgetune.line.merge import merge_step, merge_steps
from edgetune.line.shared import CALIBRATION_SEED, code_digest, libraries, torch_libraries
from edgetune.lock import SEED
from edgetune.plan import Plan
from edgetune.step import Step, path_of


def reference_step(plan: Plan, store: Path) -> Step:
    """The trained model's answers, and the merges' parity with it. The same for all devices."""
    recipe, inputs = plan.recipe, plan.inputs
    merges = merge_steps(plan)
    lengths = plan.long_context.as_json() if plan.long_context else None
    shared = {k: v for k, v in merges[0].arguments.items() if k != "onto"}
    return Step(
        name="reference",
        function="edgetune.reference.reference:reference_step",
        arguments={
            **shared,
            "base_before": str(inputs.before.path) if inputs.before else None,
            "checkpoints": {str(m.inputs["onto"]): str(path_of(store, m)) for m in merges},
            "task": recipe.task,
            "evaluation": str(inputs.evaluation.path) if inputs.evaluation else None,
            "self_test_data": recipe.self_test_data,
            "seed": SEED,
            **({"long_context": lengths} if lengths else {}),
            "threads": usable_cores(),
            "layered": plan.layered,
        },
        inputs={
            **merges[0].inputs,
            "onto": ", ".join(plan.merges_onto),
            "base_before": digest_of_json(dict(inputs.before_digests)) if inputs.before else None,
            "task": recipe.task,
            "evaluation": inputs.evaluation.digest if inputs.evaluation else None,
            "self_test_data": recipe.self_test_data,
            "seed": SEED,
            **({"long_context": digest_of_json(lengths)} if lengths else {}),
            "code": code_digest("checkpoint", "merge", "reference", "tasks"),
        },
        libraries=torch_libraries(recipe, bool(inputs.base.packed), "reference.reference"),
    )


def sensitivity_step(plan: Plan, store: Path) -> Step:
    """What each module of the merged checkpoint costs at each width, for `scheme: auto`; asks
    neither tolerances nor budgets nor the device, so that one serves every choice."""
    recipe, inputs, merge = plan.recipe, plan.inputs, merge_step(plan)
    settings = {
        "default": asdict(plan.scheme.width()),
        "accuracy_level": plan.scheme.accuracy_level,
        "task": recipe.task,
        "seed": CALIBRATION_SEED,
    }
    return Step(
        name="sensitivity",
        function="edgetune.sensitivity.measure:sensitivity_step",
        arguments={
            **settings,
            "checkpoint": str(path_of(store, merge)),
            "calibration": str(inputs.calibration.path) if inputs.calibration else None,
            "threads": usable_cores(),
            "layered": plan.layered,
        },
        inputs={
            **settings,
            "checkpoint": merge.key,
            "calibration": inputs.calibration.digest if inputs.calibration else None,
            "default": digest_of_json(settings["default"]),
            "code": code_digest("checkpoint", "reference", "optimize", "sensitivity", "tasks"),
            **versions_of("edgetune", "torch", "transformers", "onnxruntime"),
        },
        libraries=libraries(
            recipe, bool(inputs.base.packed), ("edgetune.sensitivity.measure", "transformers")
        ),
    )
