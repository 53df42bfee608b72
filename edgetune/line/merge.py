"""Base and adapters → merged checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgetune.child import Libraries
from edgetune.host import versions_of
from edgetune.line.shared import code_digest, torch_libraries
from edgetune.lock import MERGE_TOOLS, input_digests
from edgetune.plan import Plan
from edgetune.recipe import Recipe
from edgetune.step import Step


def merge_steps(plan: Plan) -> tuple[Step, ...]:
    """Every merge that the reference step compares: one, or with `onto: auto` two."""
    return tuple(merge_step(replace(plan, onto=onto)) for onto in plan.merges_onto)


def settled(plan: Plan, facts: Mapping[str, Any]) -> Plan:
    """The plan with what the reference step found to merge onto; `facts`: its own."""
    return plan if plan.onto is not None else replace(plan, onto=str(facts["chosen"]))


def merge_step(plan: Plan) -> Step:
    """Base and adapters → merged Hugging Face folder. The same for all devices.

    The plan must be settled: raises ValueError while it waits for the reference step's choice.
    """
    recipe, inputs = plan.recipe, plan.inputs
    if plan.onto is None:
        msg = f"{plan.identifier}: the reference step has not chosen what to merge onto"
        raise ValueError(msg)
    trained_as = recipe.base.trained_as.model_dump() if recipe.base.trained_as else None
    combine = recipe.combine.model_dump() if recipe.combine else None
    return Step(
        name="merge",
        function="edgetune.merge.merge:merge_step",
        arguments={
            "base": {"path": str(inputs.base.path), "trained_as": trained_as},
            "adapters": [
                {"path": str(entry.adapter.path), "weight": entry.weight}
                for entry in inputs.adapters
            ],
            "combine": combine,
            "onto": plan.onto,
            "merge_dtype": recipe.merge_dtype,
        },
        inputs={
            **input_digests(inputs),
            "trained_as": trained_as,
            "combine": combine,
            "onto": plan.onto,
            "merge_dtype": recipe.merge_dtype,
            "code": code_digest("checkpoint", "merge"),
            **versions_of(*MERGE_TOOLS),
        },
        libraries=merge_libraries(recipe, packed=bool(inputs.base.packed)),
    )


def merge_libraries(recipe: Recipe, *, packed: bool = False) -> Libraries:
    """What the merge imports; `packed`: the base is stored in 4 bits."""
    return torch_libraries(recipe, packed, "merge.merge")
