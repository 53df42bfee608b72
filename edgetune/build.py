"""The straight line, for one recipe and any number of devices.

    merge → reference → optimize → package → validate

Everything is resolved and every problem listed before the first step starts. Each step runs in a
child process of its own and hands a folder to the next; one merge and one reference serve all
devices, one graph serves all devices with the same provider and scheme.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.artifact import StepRecord, StepResult
from edgetune.console import print_note, print_warning
from edgetune.device import THIS_MACHINE, Device, find_device, is_here
from edgetune.errors import (
    GATE_FAILED,
    INCONCLUSIVE,
    PASS,
    EdgetuneError,
    MissingError,
    PlanError,
    Problem,
    UsageError,
)
from edgetune.files import is_out_of_space, locked, read_json
from edgetune.host import Host, probe_host
from edgetune.line import (
    STEPS,
    merge_step,
    optimize_step,
    package_step,
    reference_step,
    validate_step,
)
from edgetune.plan import Plan, make_plan, warnings_of
from edgetune.recipe import Recipe
from edgetune.report.publish import publish_report
from edgetune.sources.resolve import resolve
from edgetune.step import (
    Step,
    find_done,
    is_ours,
    open_store,
    path_of,
    run_step,
    versions_of,
    why_not_done,
)

_BUILD_DISTRIBUTIONS = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "olive-ai",
    "onnx",
    "bitsandbytes",
)


@dataclass(frozen=True)
class Build:
    """What came of one recipe on one device; the last four are None with `--until`."""

    identifier: str
    steps: tuple[StepResult, ...]
    verdict: str | None = None
    package: Path | None = None
    report: Path | None = None
    variant: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry of `build --json`."""
        return {
            "identifier": self.identifier,
            "verdict": self.verdict,
            "package": str(self.package) if self.package else None,
            "report": str(self.report) if self.report else None,
            "variant": self.variant,
            "steps": [step.model_dump(exclude={"facts"}) for step in self.steps],
        }


def plan_builds(
    recipe: Recipe, device_names: Sequence[str], out: Path, only: str = "*"
) -> list[Plan]:
    """The plans of a recipe for its devices (`-d`, else the recipe's, else this machine).

    Raises PlanError listing every problem of every device, UsageError for a foreign output
    folder or a pattern that no build matches.
    """
    if not is_ours(out):
        msg = f"{out}: this folder holds something else; edgetune writes into its own only"
        raise UsageError(msg, "name a new or empty folder with -o")
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
    inputs, found = resolve(recipe)
    problems += found
    plans: list[Plan] = []
    if inputs is not None:
        host, installed = probe_host(), versions_of(*_BUILD_DISTRIBUTIONS)
        existing = next(p for p in [out.resolve(), *out.resolve().parents] if p.exists())
        free = shutil.disk_usage(existing).free
        for device in devices:
            try:
                plans.append(make_plan(recipe, device, inputs, host, installed, free))
            except PlanError as why:
                problems += why.problems
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    for warning in warnings_of(plans[0].inputs):
        print_warning(warning)
    return plans


def run_builds(plans: Sequence[Plan], out: Path, until: str = STEPS[-1]) -> list[Build]:
    """Run the line for plans of one recipe. Raises the error of the step that fails."""
    try:
        return _run_builds(plans, out, until)
    except OSError as why:
        if not is_out_of_space(why):
            raise
        msg = f"{out}: the disk is full"
        hint = "free some space and run the same command again; finished steps are kept"
        raise MissingError(msg, hint) from why


def _run_builds(plans: Sequence[Plan], out: Path, until: str) -> list[Build]:
    out = out.resolve()
    store = open_store(out)
    reached = STEPS[: STEPS.index(until) + 1]

    checkpoint = run_step(merge_step(plans[0]), store)
    for warning in checkpoint.facts.get("warnings", []):
        print_warning(warning)
    shared = [checkpoint]
    if "reference" in reached and until != "optimize":
        shared.append(run_step(reference_step(plans[0], store), store))
    graphs: dict[str, StepResult] = {}
    for plan in plans:
        if "optimize" in reached and plan.variant not in graphs:
            graphs[plan.variant] = run_step(optimize_step(plan, store), store)
    before = [(*shared, *_graph_of(plan, graphs)) for plan in plans]
    pairs = list(zip(plans, before, strict=True))
    if "package" not in reached:
        return [Build(plan.identifier, done, variant=plan.variant) for plan, done in pairs]
    facts: dict[str, Any] = {}
    for result in shared:
        facts.update(result.facts)
    step = package_step(plans, out, facts)
    # One build at a time may put a package in place and validate it there.
    with locked(store / "locks" / f"recipe-{plans[0].recipe.name}"):
        package = run_step(step, store)
        if "validate" not in reached:
            return [
                Build(p.identifier, (*done, package), None, Path(package.path), None, p.variant)
                for p, done in pairs
            ]
        host = probe_host()
        return [_validate(plan, step, (*done, package), out, host, facts) for plan, done in pairs]


def _graph_of(plan: Plan, graphs: Mapping[str, StepResult]) -> tuple[StepResult, ...]:
    return (graphs[plan.variant],) if plan.variant in graphs else ()


def _validate(
    plan: Plan,
    package: Step,
    before: tuple[StepResult, ...],
    out: Path,
    host: Host,
    facts: Mapping[str, Any],
) -> Build:
    """Validate a package on this host and put the report beside it."""
    step = validate_step(plan, package, out, host, facts)
    result = run_step(step, out / "steps", reuse=_passed)
    report, verdict = publish_report(
        Path(result.path) / "report.json",
        Path(path_of(out / "steps", package)) / "reports",
        steps=[s.model_dump(exclude={"facts", "path"}) for s in (*before, result)],
    )
    return Build(
        plan.identifier,
        (*before, result),
        verdict,
        path_of(out / "steps", package),
        report,
        plan.variant,
    )


def _passed(record: StepRecord) -> bool:
    """A validation that did not pass is measured again: latency has its moods."""
    return bool(record.facts.get("verdict") == "pass")


def exit_code(builds: Sequence[Build]) -> int:
    """The exit code of finished builds: 1 before 5 before 0."""
    verdicts = {build.verdict for build in builds}
    if "fail" in verdicts:
        return GATE_FAILED
    return INCONCLUSIVE if "inconclusive" in verdicts else PASS


def describe_steps(plans: Sequence[Plan], out: Path) -> list[tuple[str, str, str, str]]:
    """For `--plan`: (identifier, step, done or to do, why) for every step of every build."""
    out = out.resolve()
    store = out / "steps"
    host = probe_host()
    package = package_step(plans, out)
    rows = []
    for plan in plans:
        line = (
            merge_step(plan),
            reference_step(plan, store),
            optimize_step(plan, store),
            package,
            validate_step(plan, package, out, host, {}),
        )
        stale = ""
        for step in line:
            record = find_done(store, step) if store.is_dir() else None
            if record is not None and (step.name != "validate" or _passed(record)):
                rows.append((plan.identifier, step.name, "done", ""))
                continue
            why = why_not_done(store, step) if store.is_dir() else "not built yet"
            if record is not None:
                why = f"its last verdict was {record.facts.get('verdict')}"
            rows.append((plan.identifier, step.name, "to do", why or stale))
            stale = f"{step.name} runs again"
    return rows


def plan_as_json(plans: Sequence[Plan], out: Path) -> dict[str, Any]:
    """The document of `build --plan --json`."""
    host = probe_host()
    rows = describe_steps(plans, out)
    return {
        "plans": [
            {
                "identifier": plan.identifier,
                "variant": plan.variant,
                "provider": plan.provider,
                "scheme": plan.scheme.name,
                "group_size": plan.group_size,
                "threads": plan.threads,
                "on_device": is_here(plan.device, host),
                "predicted": {
                    "merged_bytes": plan.estimates.merged_bytes,
                    "graph_bytes": plan.estimates.graph_bytes,
                    "device_memory_bytes": plan.estimates.device_memory_bytes,
                    "disk_bytes": plan.estimates.disk_bytes,
                },
                "steps": [
                    {"name": name, "state": state, "why": why}
                    for identifier, name, state, why in rows
                    if identifier == plan.identifier
                ],
            }
            for plan in plans
        ]
    }


def load_report(build: Build) -> Mapping[str, Any]:
    """The report of a finished build. Raises EdgetuneError when there is none."""
    if build.report is None:
        msg = f"{build.identifier}: no report was written"
        raise EdgetuneError(msg)
    report: Mapping[str, Any] = read_json(build.report)
    return report


def note_plans(plans: Sequence[Plan], out: Path) -> None:
    """Say what will be built, before it starts."""
    for plan in plans:
        recipe, inputs = plan.recipe, plan.inputs
        kinds = [
            f"{'DoRA' if e.adapter.use_dora else e.adapter.peft_type} {e.adapter.path.name}"
            + (f" × {e.weight:g}" if e.weight != 1 else "")
            for e in inputs.adapters
        ]
        print_note(
            f"plan       {plan.identifier}: {inputs.base.path.name} + "
            f"{' + '.join(kinds) if kinds else 'no adapter'} → {plan.variant}"
        )
        place = "this host" if plan.here else "not this host: its latency will not be measured"
        print_note(
            f"           {recipe.task}, "
            f"{inputs.evaluation.items if inputs.evaluation else 'no'} evaluation items; "
            f"graph about {plan.estimates.graph_bytes / 1e6:.1f} MB (predicted); "
            f"{plan.device.name} is {place}"
        )
    print_note(f"out        {out.resolve()}")
