"""The straight line as steps: what each one is given, and what its result depends on.

Pure: from plans and the output folder to `Step`s. A step's `inputs` are its key; its `arguments`
are what the child gets, paths included, which no key may contain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from edgetune.checkpoint.adapter import count_trained
from edgetune.child import Libraries
from edgetune.device import THIS_MACHINE, machine_of
from edgetune.environments.emulator import Emulation
from edgetune.files import digest_of_json, sha256_of_file
from edgetune.host import Host, usable_cores, versions_of
from edgetune.lock import MERGE_TOOLS, OPTIMIZE_TOOLS, SEED, input_digests, make_lock
from edgetune.optimize.workflow import make_workflow
from edgetune.package.self_test_app import make_self_test_app
from edgetune.plan import Inputs, Plan
from edgetune.recipe import Recipe
from edgetune.step import Step, path_of

# Only a 4-bit base needs bitsandbytes, and PEFT takes seconds to import it.
_UNUSED = ("bitsandbytes",)
STEPS = ("merge", "reference", "optimize", "package", "validate")
# Of text that the model samples to calibrate on: not that of the evaluation.
CALIBRATION_SEED = SEED + 1
_PACKAGE_TOOLS = ("edgetune", "onnxruntime", "onnxruntime-genai")
_MERGE_FACTS = (
    *("parity_max_abs", "parity_limit", "parity_enforced", "parity_against", "largest_logit"),
    *("tensors_used", "tensors_total", "onto", "untied", "rounding_max_abs"),
    *("certificate", "modules"),
)


@cache
def code_digest(*rooms: str) -> str:
    """Digest of the source files of these rooms: a step made by other code is another step."""
    here = Path(__file__).resolve().parent
    files = sorted(path for room in rooms for path in (here / room).rglob("*.py"))
    return digest_of_json({f.relative_to(here).as_posix(): sha256_of_file(f) for f in files})[:12]


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


def reference_step(plan: Plan, store: Path) -> Step:
    """The trained model's answers, and the merges' parity with it. The same for all devices."""
    recipe, inputs = plan.recipe, plan.inputs
    merges = merge_steps(plan)
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
            "code": code_digest("checkpoint", "merge", "reference", "tasks"),
        },
        libraries=_torch_libraries(recipe, bool(inputs.base.packed), "reference.reference"),
    )


def sensitivity_step(plan: Plan, store: Path) -> Step:
    """What each module of the merged checkpoint costs at each width, for `scheme: auto`; asks
    neither tolerances nor budgets nor the device, so that one serves every choice."""
    recipe, inputs, merge = plan.recipe, plan.inputs, merge_step(plan)
    settings = {
        "default": asdict(plan.scheme.width()),
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
        libraries=_libraries(
            recipe, bool(inputs.base.packed), ("edgetune.sensitivity.measure", "transformers")
        ),
    )


def optimize_step(plan: Plan, store: Path) -> Step:
    """Merged checkpoint → flat onnxruntime-genai folder, one a provider and scheme."""
    merge = merge_step(plan)
    workflow = make_workflow(plan.scheme, plan.widths, plan.provider)
    return Step(
        name="optimize",
        function="edgetune.optimize.optimize:optimize_step",
        arguments={
            "checkpoint": str(path_of(store, merge)),
            "base": _started_from(plan),
            "workflow": workflow,
            "scheme": plan.scheme.name,
            "widths": plan.widths.as_json(),
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
        libraries=_libraries(
            plan.recipe,
            bool(plan.inputs.base.packed),
            ("edgetune.optimize.optimize", "edgetune.optimize.olive"),
        ),
    )


def _calibration(plan: Plan) -> dict[str, Any]:
    """An argument of the optimize step: what the calibration text is made of."""
    if not plan.scheme.calibrated:
        return {}
    data = plan.inputs.calibration
    return {
        "calibration": {
            "task": plan.recipe.task,
            "data": str(data.path) if data else None,
            "seed": SEED,
            "threads": usable_cores(),
            "layered": plan.layered,
        }
    }


def _calibration_inputs(plan: Plan) -> dict[str, Any]:
    """A part of the optimize step's key, for a scheme that needs calibration text."""
    if not plan.scheme.calibrated:
        return {}
    data = plan.inputs.calibration
    return {
        "calibration": data.digest if data else None,
        "task": plan.recipe.task,
        "seed": SEED,
        "calibration_code": code_digest("reference", "tasks"),
    }


def merge_libraries(recipe: Recipe, *, packed: bool = False) -> Libraries:
    """What the merge imports; `packed`: the base is stored in 4 bits."""
    return _torch_libraries(recipe, packed, "merge.merge")


def _torch_libraries(recipe: Recipe, packed: bool, room: str) -> Libraries:
    return _libraries(recipe, packed, (f"edgetune.{room}", "peft", "transformers", "accelerate"))


def _libraries(recipe: Recipe, packed: bool, names: tuple[str, ...]) -> Libraries:
    four_bit = packed or recipe.base.trained_as is not None
    return Libraries(names, () if four_bit else _UNUSED)


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
            "self_test": str(path_of(store, reference) / _shipped_self_test(first)),
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


def validate_step(
    plan: Plan,
    package: Step,
    out: Path,
    host: Host,
    facts: Mapping[str, Any],
    emulation: Emulation | str | None = None,
    survival: Mapping[str, Any] | None = None,
    thorough: bool = False,
) -> Step:
    """The package against its reference, on this host. `facts`: of the merge, and `survival` of
    the graph, for the report. `thorough`: with what takes minutes more.

    `emulation`: the device's processor, emulated as well, or why it is not; null on the device.
    """
    store = out / "steps"
    device = {
        "name": plan.device.name,
        "here": plan.here,
        "threads": plan.threads,
        "arch": plan.device.arch,
    }
    return Step(
        name="validate",
        function="edgetune.validate.validate:validate_step",
        arguments={
            "package": str(path_of(store, package)),
            "device": device,
            "variant": plan.variant,
            "identifier": plan.identifier,
            "reference": str(path_of(store, reference_step(plan, store))),
            "private_data": _shipped_self_test(plan) != "self_test",
            "checkpoint": str(path_of(store, merge_step(plan))),
            "merge": dict(facts),
            "survival": survival,
            "steps": [],
            "evidence": {"built": True},
            "thorough": thorough,
            **_emulation_arguments(emulation),
        },
        inputs={
            "package": package.key,
            "device": device,
            "variant": plan.variant,
            "host": host.fingerprint,
            "thorough": thorough,
            "code": code_digest("validate", "runtime", "report", "tasks", "environments"),
            **_emulation_inputs(emulation),
            **versions_of("edgetune", "onnxruntime", "onnxruntime-genai", "numpy", "torch"),
        },
    )


def _emulation_arguments(emulation: Emulation | str | None) -> dict[str, Any]:
    if isinstance(emulation, Emulation):
        return {"emulation": emulation.as_json()}
    return {} if emulation is None else {"not_emulated": emulation}


def _emulation_inputs(emulation: Emulation | str | None) -> dict[str, Any]:
    if isinstance(emulation, Emulation):
        return {"emulation": digest_of_json(emulation.as_input())}
    return {}


def _started_from(plan: Plan) -> dict[str, Any] | None:
    """The base that the fine-tune changed, as the merge took it; null where it is not named."""
    inputs, trained_as = plan.inputs, plan.recipe.base.trained_as
    if not inputs.adapters:
        before = inputs.before
        return {"path": str(before.path), "trained_as": None} if before else None
    seen = trained_as.model_dump() if trained_as and plan.onto == "dequantized" else None
    return {"path": str(inputs.base.path), "trained_as": seen}


def _shipped_self_test(plan: Plan) -> str:
    """Which folder of the reference travels in the package."""
    private = plan.recipe.self_test_data == "builtin" and plan.inputs.evaluation is not None
    return "shipped_self_test" if private else "self_test"


def _device_entry(plan: Plan) -> dict[str, Any]:
    """What the package says of a device; nothing that was probed on the build machine."""
    if plan.device.name == THIS_MACHINE:
        return {"variant": plan.variant, "session": None, "machine": None}
    session = plan.device.session.model_dump()
    return {"variant": plan.variant, "session": session, "machine": machine_of(plan.device)}
