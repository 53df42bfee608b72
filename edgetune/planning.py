"""Before anything starts: from a recipe and device names to plans, with every problem listed, and
what each step would do and why."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune.auto import known_reports, read_choice, try_choices, with_choice
from edgetune.checkpoint.peft_types import label_of
from edgetune.console import print_note, print_warning
from edgetune.device import THIS_MACHINE, Device, find_device, is_here
from edgetune.environments.emulator import Emulation, find_emulation
from edgetune.errors import MissingError, PlanError, Problem, UsageError
from edgetune.host import (
    Host,
    available_memory_bytes,
    probe_host,
    total_memory_bytes,
    versions_of,
)
from edgetune.inputs import warnings_of
from edgetune.line import (
    STEPS,
    merge_steps,
    optimize_step,
    package_step,
    reference_step,
    sensitivity_step,
    settled,
    validate_step,
)
from edgetune.optimize.allocation import Allocation
from edgetune.plan import Plan, make_plan
from edgetune.problems import BUILD_LIBRARIES
from edgetune.recipe import Recipe
from edgetune.sources.resolve import resolve
from edgetune.step import Step, find_done, is_ours, passed, why_not_done


def plan_builds(
    recipe: Recipe,
    device_names: Sequence[str],
    out: Path,
    only: str = "*",
    pickles: Path | None = None,
) -> list[Plan]:
    """The plans of a recipe for its devices (`-d`, else the recipe's, else this machine).

    `pickles`: a folder for what pickled weights are converted into; without one they are refused.

    Raises PlanError listing every problem of every device, UsageError for a foreign output
    folder or a pattern that no build matches.
    """
    if not is_ours(out):
        msg = f"{out}: this folder holds something else; edgetune writes into its own only"
        raise UsageError(msg, "name a new or empty folder with -o")
    existing = next(p for p in [out.absolute(), *out.absolute().parents] if p.exists())
    if not existing.is_dir():
        msg = f"{out}: {existing} is a file, so nothing can be written below it"
        raise UsageError(msg, "name another output folder with -o")
    package = out / recipe.name
    if package.exists() and not (package / "edgetune.lock").is_file():
        msg = f"{package}: in the way, and not a package"
        raise UsageError(msg, "move it away, or name another output folder with -o")
    problems: list[Problem] = []
    devices: list[Device] = []
    for name in dict.fromkeys(device_names or recipe.devices or (THIS_MACHINE,)):
        try:
            devices.append(find_device(name))
        except UsageError as why:
            problems.append(Problem(why.message, why.hint))
    identifiers = [f"{recipe.name}@{device.name}" for device in devices]
    devices = [d for d, i in zip(devices, identifiers, strict=True) if fnmatch.fnmatch(i, only)]
    if not devices and not problems:
        msg = f"--only {only}: no build matches; there are {', '.join(identifiers)}"
        raise UsageError(msg, "for example --only '*@generic-x86-64'")
    inputs, found = resolve(recipe, pickles)
    problems += found
    plans: list[Plan] = []
    if inputs is not None:
        host, installed = probe_host(), versions_of(*BUILD_LIBRARIES, "bitsandbytes")
        room = (
            shutil.disk_usage(existing).free,
            available_memory_bytes(),
            total_memory_bytes(host),
        )
        for device in devices:
            try:
                plans.append(make_plan(recipe, device, inputs, host, installed, *room))
            except PlanError as why:
                problems += why.problems
        for device in devices:
            try:
                emulation_of(device, host)
            except UsageError as why:
                problems.append(Problem(why.message, why.hint))
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    for warning in warnings_of(plans[0].inputs):
        print_warning(warning)
    return plans


def emulation_of(device: Device, host: Host) -> Emulation | str | None:
    """The device's processor, emulated; a sentence where it cannot be had here; null where the
    device itself is here. Raises UsageError when the profile names a processor that no emulator
    knows."""
    if is_here(device, host):
        return None
    if device.emulate is None:
        return device.not_emulated or "the device's profile names no processor to emulate"
    try:
        return find_emulation(device, host)
    except MissingError as why:
        return f"{why.message}; {why.hint}"


def describe_steps(
    plans: Sequence[Plan], out: Path, thorough: bool = False
) -> list[tuple[str, str, str, str]]:
    """For `--plan`: (identifier, step, done or to do, why) for every step of every build."""
    out = out.resolve()
    store = out / "steps"
    host = probe_host()
    plans = [_settled_by_store(plan, store) for plan in plans]
    open_choice = _open_choice(plans[0])
    if not open_choice and plans[0].scheme.chooses:
        chosen = _chosen_by_store(plans, out, host)
        plans, open_choice = chosen or plans, "" if chosen else _BY_SENSITIVITIES
    package = package_step(plans, out) if not open_choice else None
    rows = []
    for plan in plans:
        line = [*merge_steps(plan), reference_step(plan, store)]
        if plan.scheme.chooses and plan.onto is not None:
            line.append(sensitivity_step(plan, store))
        if package is not None:
            emulation = emulation_of(plan.device, host)
            line += [optimize_step(plan, store), package]
            line.append(validate_step(plan, package, out, host, {}, emulation, thorough=thorough))
        rows += [(plan.identifier, step.name, *_state_of(step, store)) for step in line]
        if package is None:
            rows += [(plan.identifier, name, "to do", open_choice) for name in STEPS[2:]]
    return rows


_BY_SENSITIVITIES = "the sensitivities choose the widths that it is made of"


def _open_choice(plan: Plan) -> str:
    """Why what comes after the reference is not known yet; empty where it is."""
    return "the reference chooses the merge that it is made of" if plan.onto is None else ""


def _chosen_by_store(plans: Sequence[Plan], out: Path, host: Host) -> list[Plan] | None:
    """The plans with the widths that earlier builds chose; null where that is not known."""
    store = out / "steps"
    if not store.is_dir():
        return None
    reference = find_done(store, reference_step(plans[0], store))
    if reference is None or find_done(store, sensitivity_step(plans[0], store)) is None:
        return None
    emulations = [emulation_of(plan.device, host) for plan in plans]

    def verify(allocation: Allocation) -> list[dict[str, Any]] | None:
        return known_reports(with_choice(plans, allocation), out, host, emulations)

    tried = try_choices(read_choice(plans[0], store, reference.facts.get("kl_base")), verify)
    return None if tried is None else with_choice(plans, tried.best.allocation)


def _settled_by_store(plan: Plan, store: Path) -> Plan:
    """The plan with the reference step's choice, where that was made in an earlier build."""
    if plan.onto is not None or not store.is_dir():
        return plan
    record = find_done(store, reference_step(plan, store))
    return plan if record is None else settled(plan, record.facts)


def _state_of(step: Step, store: Path) -> tuple[str, str]:
    """(done or to do, why)."""
    record = find_done(store, step) if store.is_dir() else None
    if record is None:
        return "to do", why_not_done(store, step) if store.is_dir() else "not built yet"
    if step.name == "validate" and not passed(record):
        return "to do", f"its last verdict was {record.facts.get('verdict')}"
    return "done", ""


def plan_as_json(plans: Sequence[Plan], out: Path, thorough: bool = False) -> dict[str, Any]:
    """The document of `build --plan --json`."""
    rows = describe_steps(plans, out, thorough)
    return {
        "warnings": warnings_of(plans[0].inputs),
        "plans": [
            {
                "identifier": plan.identifier,
                "variant": plan.variant,
                "provider": plan.provider,
                "scheme": plan.scheme.name,
                "group_size": plan.group_size,
                "threads": plan.threads,
                "on_device": plan.here,
                "layer_by_layer": plan.layered,
                "long_context": plan.long_context.as_json() if plan.long_context else None,
                "predicted": {
                    "merged_bytes": plan.estimates.merged_bytes,
                    "graph_bytes": plan.estimates.graph_bytes,
                    "device_memory_bytes": plan.estimates.device_memory_bytes,
                    "cache_token_bytes": plan.estimates.cache_token_bytes,
                    "build_memory_bytes": plan.estimates.build_memory_bytes,
                    "disk_bytes": plan.estimates.disk_bytes,
                },
                "steps": [
                    {"name": name, "state": state, "why": why}
                    for identifier, name, state, why in rows
                    if identifier == plan.identifier
                ],
            }
            for plan in plans
        ],
    }


def note_plans(plans: Sequence[Plan], out: Path) -> None:
    """Say what will be built, before it starts."""
    for plan in plans:
        recipe, inputs = plan.recipe, plan.inputs
        kinds = [
            f"{'DoRA' if e.adapter.use_dora else label_of(e.adapter.peft_type)} "
            f"{e.origin.name}" + (f" × {e.weight:g}" if e.weight != 1 else "")
            for e in inputs.adapters
        ]
        how = f" ({recipe.combine.how})" if recipe.combine else ""
        print_note(
            f"plan       {plan.identifier}: {inputs.base_origin.name} + "
            f"{' + '.join(kinds) if kinds else 'no adapter'}{how} → {plan.variant}"
        )
        place = "here" if plan.here else _elsewhere(plan)
        print_note(
            f"           {recipe.task}, "
            f"{inputs.evaluation.items if inputs.evaluation else 'no'} evaluation items; "
            f"graph about {plan.estimates.graph_bytes / 1e6:.1f} MB, on the device about "
            f"{plan.estimates.device_memory_bytes / 1e6:.0f} MB of memory (predicted); "
            f"{plan.device.name} is {place}"
        )
    if (lengths := plans[0].long_context) is not None:
        print_note(f"           long context: {lengths.in_words()}")
    if plans[0].recipe.onto == "auto":
        print_note(f"           {_merges_in_words(plans[0])}")
    if any(plan.layered for plan in plans):
        needed = plans[0].estimates.build_memory_bytes
        print_warning(
            f"the trained model needs about {needed / 1e9:.1f} GB in memory (predicted), more than "
            "can be held here: it is run layer by layer from disk, with the same results, slowly"
        )
    print_note(f"out        {out.resolve()}")


def _merges_in_words(plan: Plan) -> str:
    """What `onto: auto` comes to."""
    if len(plan.merges_onto) > 1:
        return (
            "onto auto: merged onto the dequantized and onto the original base; the one nearer to "
            "the trained model is taken"
        )
    if plan.inputs.base.packed:
        return "onto auto: the base is stored in 4 bits and has no original, so there is one merge"
    return "onto auto: the base was not 4-bit in training, so there is one merge"


def _elsewhere(plan: Plan) -> str:
    text = "not here: its latency will not be measured"
    emulation = emulation_of(plan.device, probe_host())
    if isinstance(emulation, Emulation):
        return f"{text}; {emulation.cpu} will be emulated by {emulation.emulator}"
    return f"{text}, nor its processor emulated ({emulation})"
