"""What ships against its reference, on this host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.environments.emulator import Emulation
from edgetune.files import digest_of_json
from edgetune.host import Host, versions_of
from edgetune.line.merge import merge_step
from edgetune.line.package import shipped_self_test
from edgetune.line.reference import reference_step
from edgetune.line.shared import code_digest
from edgetune.plan import Plan
from edgetune.step import Step, path_of


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
            "private_data": shipped_self_test(plan) != "self_test",
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
