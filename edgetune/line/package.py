"""Graphs and reference → what ships."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.checkpoint.adapter import count_trained
from edgetune.device import THIS_MACHINE, machine_of
from edgetune.files import digest_of_json
from edgetune.host import versions_of
from edgetune.inputs import Inputs
from edgetune.line.merge import merge_step
from edgetune.line.optimize import optimize_step
from edgetune.line.reference import reference_step, sensitivity_step
from edgetune.line.shared import code_digest
from edgetune.lock import make_lock
from edgetune.package.self_test_app import make_self_test_app
from edgetune.plan import Plan
from edgetune.step import Step, path_of

_PACKAGE_TOOLS = ("edgetune", "onnxruntime", "onnxruntime-genai")
_MERGE_FACTS = (
    *("parity_max_abs", "parity_limit", "parity_enforced", "parity_against", "largest_logit"),
    *("tensors_used", "tensors_total", "onto", "untied", "rounding_max_abs"),
    *("certificate", "modules"),
)


def package_step(plans: Sequence[Plan], out: Path, facts: Mapping[str, Any] | None = None) -> Step:
    """Graphs and reference → the package of a recipe, for all its devices.

    `facts`: what merge and reference found; the package carries the merge's proof.
    """
    store = out / "steps"
    first = plans[0]
    recipe = first.recipe
    merge, reference = merge_step(first), reference_step(first, store)
    graphs = {plan.variant: optimize_step(plan, store) for plan in plans}
    providers = {plan.variant: plan.provider for plan in plans}
    devices = {plan.device.name: _device_entry(plan) for plan in plans}
    limits = {
        "tolerances": recipe.tolerances.model_dump(),
        "budgets": recipe.budgets.model_dump(),
        "require_on_device": recipe.require_on_device,
    }
    shared = {"merge": merge, "reference": reference}
    if first.scheme.chooses:
        shared["sensitivity"] = sensitivity_step(first, store)
    lock = make_lock(first, shared, graphs)
    return Step(
        name="package",
        function="edgetune.package.pack:package_step",
        arguments={
            "name": recipe.name,
            "variants": [
                {
                    "name": name,
                    "graph": str(path_of(store, step)),
                    "provider": providers[name],
                    "device_kind": "cpu",
                }
                for name, step in sorted(graphs.items())
            ],
            "devices": devices,
            "self_test": str(path_of(store, reference) / shipped_self_test(first)),
            "checkpoint": str(path_of(store, merge)),
            "base_checkpoint": str(first.inputs.base.path),
            "lock": lock,
            "merge": {key: facts.get(key) for key in _MERGE_FACTS} if facts else None,
            "trained_parameters": trained_parameters(first.inputs),
            **limits,
        },
        inputs={
            "recipe": recipe.name,
            "reference": reference.key,
            **{f"graph {name}": step.key for name, step in sorted(graphs.items())},
            "devices": devices,
            "trained_parameters": trained_parameters(first.inputs),
            "lock": digest_of_json(lock),
            **limits,
            "self_test_app": hashlib.sha256(make_self_test_app()).hexdigest(),
            "code": code_digest("package"),
            **versions_of(*_PACKAGE_TOOLS),
        },
        payload=out / recipe.name,
        payload_without=("reports",),
    )


def trained_parameters(inputs: Inputs) -> int | None:
    """How many numbers the adapters trained, by their headers; null for a full fine-tune, which
    trained all there are."""
    if not inputs.adapters:
        return None
    return sum(count_trained(entry.adapter) for entry in inputs.adapters)


def shipped_self_test(plan: Plan) -> str:
    """Which folder of the reference travels in the package."""
    private = plan.recipe.self_test_data == "builtin" and plan.inputs.evaluation is not None
    return "shipped_self_test" if private else "self_test"


def _device_entry(plan: Plan) -> dict[str, Any]:
    """What the package says of a device; nothing that was probed on the build machine."""
    if plan.device.name == THIS_MACHINE:
        return {"variant": plan.variant, "session": None, "machine": None}
    session = plan.device.session.model_dump()
    return {"variant": plan.variant, "session": session, "machine": machine_of(plan.device)}
