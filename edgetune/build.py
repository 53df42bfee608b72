"""The straight line, for one recipe and any number of devices.

    merge → reference → optimize → package → validate

`planning.py` has resolved everything and listed every problem before the first step starts. Each
step runs in a child process of its own and hands a folder to the next; one merge and one reference
serve all devices, one graph serves all devices with the same provider and scheme. With `scheme:
auto` the modules' sensitivities are measured after the reference, and choose the graph's widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune.artifact import StepResult
from edgetune.auto import (
    allocation_section,
    first_choice,
    known_reports,
    read_choice,
    try_choices,
    with_choice,
)
from edgetune.child import prepare_child
from edgetune.console import print_note, print_warning
from edgetune.errors import (
    GATE_FAILED,
    INCONCLUSIVE,
    PASS,
    EdgetuneError,
    MissingError,
)
from edgetune.files import is_out_of_space, locked, read_json
from edgetune.host import Host, probe_host
from edgetune.inputs import warnings_of
from edgetune.line import (
    STEPS,
    merge_libraries,
    merge_step,
    merge_steps,
    optimize_step,
    package_step,
    reference_step,
    sensitivity_step,
    settled,
    validate_step,
)
from edgetune.optimize.allocation import Allocation
from edgetune.plan import Plan
from edgetune.planning import emulation_of
from edgetune.recipe import Recipe
from edgetune.report.publish import publish_report
from edgetune.step import (
    Step,
    open_store,
    passed,
    path_of,
    run_step,
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
    # Item by item, what the trained model and the package did; null where nothing was finite.
    answers: Path | None = None

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


def prepare_builds(recipe: Recipe, out: Path) -> None:
    """While the plan is made, let the child of the first step import its libraries."""
    if not any((out / "steps").glob("merge-*")):
        prepare_child(merge_libraries(recipe))


def run_builds(
    plans: Sequence[Plan], out: Path, until: str = STEPS[-1], thorough: bool = False
) -> list[Build]:
    """Run the line for plans of one recipe; `thorough`: the validation takes minutes. Raises the
    error of the step that fails."""
    try:
        return _run_builds(plans, out, until, thorough)
    except OSError as why:
        if not is_out_of_space(why):
            raise
        msg = f"{out}: the disk is full"
        hint = "free some space and run the same command again; finished steps are kept"
        raise MissingError(msg, hint) from why


def _run_builds(plans: Sequence[Plan], out: Path, until: str, thorough: bool) -> list[Build]:
    chooses = plans[0].scheme.chooses and until in STEPS[STEPS.index("optimize") :]
    line, plans = _begin(plans, out, until, chooses, thorough)
    return _run_auto(line, plans) if chooses else _finish(line, plans)


def measure_sensitivities(plan: Plan, out: Path) -> tuple[Plan, Mapping[str, Any]]:
    """(the plan, settled; the facts of merge and reference) when its sensitivities are in the
    store: for predictions without a graph. Raises the error of the step that fails."""
    line, (settled_plan,) = _begin([plan], out, "reference", True, False)
    return settled_plan, line.facts


def _begin(
    plans: Sequence[Plan], out: Path, until: str, chooses: bool, thorough: bool
) -> tuple[_Line, Sequence[Plan]]:
    """The steps that all devices share; `chooses`: with the sensitivities that widths are chosen
    by."""
    out = out.resolve()
    store = open_store(out)
    reached = STEPS[: STEPS.index(until) + 1]

    merges = merge_steps(plans[0])
    # The graph needs no reference, unless that is what chooses between two merges, or widths.
    measures = "reference" in reached and (until != "optimize" or len(merges) > 1 or chooses)
    reference = reference_step(plans[0], store)
    known = "optimize" in reached and len(merges) == 1 and not chooses
    graph = optimize_step(plans[0], store) if known else None
    shared = [run_step(step, store, then=reference if measures else graph) for step in merges]
    for warning in shared[0].facts.get("warnings", []):
        if warning not in warnings_of(plans[0].inputs):  # these were told with the plan
            print_warning(warning)
    facts: dict[str, Any] = {}
    if measures:
        after = sensitivity_step(plans[0], store) if chooses and len(merges) == 1 else graph
        shared.append(run_step(reference, store, then=after))
        plans = [settled(plan, shared[-1].facts) for plan in plans]
        merged = path_of(store, merge_step(plans[0]))
        merge = next(result for result in shared if result.path == str(merged))
        facts = {**merge.facts, **shared[-1].facts}
    if chooses:
        shared.append(run_step(sensitivity_step(plans[0], store), store))
    return _Line(out, reached, tuple(shared), facts, thorough), plans


@dataclass(frozen=True)
class _Line:
    """What the plans of a recipe share: where, how far, the steps done, and their facts."""

    out: Path
    reached: tuple[str, ...]
    shared: tuple[StepResult, ...]
    facts: Mapping[str, Any]
    thorough: bool


def _finish(line: _Line, plans: Sequence[Plan]) -> list[Build]:
    """The line from the graph on, for plans that leave nothing to choose."""
    out, store, reached, shared = line.out, line.out / "steps", line.reached, line.shared
    graphs: dict[str, StepResult] = {}
    for plan in plans:
        if "optimize" in reached and plan.variant not in graphs:
            graphs[plan.variant] = run_step(optimize_step(plan, store), store)
    before = [(*shared, *_graph_of(plan, graphs)) for plan in plans]
    pairs = list(zip(plans, before, strict=True))
    if "package" not in reached:
        return [Build(plan.identifier, done, variant=plan.variant) for plan, done in pairs]
    step = package_step(plans, out, line.facts)
    # One build at a time may put a package in place and validate it there.
    with locked(store / "locks" / f"recipe-{plans[0].recipe.name}"):
        package = run_step(step, store)
        if "validate" not in reached:
            return [
                Build(p.identifier, (*done, package), None, Path(package.path), None, p.variant)
                for p, done in pairs
            ]
        host = probe_host()
        return [
            _validate(plan, step, (*done, package), out, host, line.facts, line.thorough)
            for plan, done in pairs
        ]


def _run_auto(line: _Line, plans: Sequence[Plan]) -> list[Build]:
    """The line from the graph on, where the widths are chosen: built and verified until the
    recipe's tolerances are met, or the tries are used up. The last package is the best one."""
    store, host = line.out / "steps", probe_host()
    choice = read_choice(plans[0], store, line.facts.get("kl_base"))
    if "validate" not in line.reached:
        return _finish(line, with_choice(plans, first_choice(choice)))
    emulations = [emulation_of(plan.device, host) for plan in plans]
    quick, last = replace(line, thorough=False), None
    builds: list[Build] = []

    def verify(allocation: Allocation) -> Sequence[Mapping[str, Any]]:
        nonlocal last, builds
        own = with_choice(plans, allocation)
        known = known_reports(own, line.out, host, emulations)
        if known is not None:
            return known
        size = choice.found.graph_bytes(allocation)
        print_note(f"auto       a graph of about {size / 1e6:.2f} MB is built and verified")
        builds, last = _finish(quick, own), allocation
        return [load_report(build) for build in builds]

    tried = try_choices(choice, verify)
    assert tried is not None  # what is not known was built
    best = tried.best.allocation
    plans = with_choice(plans, best)
    if last is None or last.widths != best.widths or line.thorough:
        builds = _finish(line, plans)
    with locked(store / "locks" / f"recipe-{plans[0].recipe.name}"):
        return [
            _publish(build, allocation_section(plan, tried))
            for plan, build in zip(plans, builds, strict=True)
        ]


def _graph_of(plan: Plan, graphs: Mapping[str, StepResult]) -> tuple[StepResult, ...]:
    return (graphs[plan.variant],) if plan.variant in graphs else ()


def _validate(
    plan: Plan,
    package: Step,
    before: tuple[StepResult, ...],
    out: Path,
    host: Host,
    facts: Mapping[str, Any],
    thorough: bool,
) -> Build:
    """Validate a package on this host and put the report beside it."""
    emulation = emulation_of(plan.device, host)
    graph = next(result for result in before if result.name == "optimize")
    survival = graph.facts.get("survival")
    step = validate_step(plan, package, out, host, facts, emulation, survival, thorough)
    result = run_step(step, out / "steps", reuse=passed)
    build = Build(
        plan.identifier,
        (*before, result),
        package=path_of(out / "steps", package),
        variant=plan.variant,
        answers=answers if (answers := Path(result.path) / "answers.json").is_file() else None,
    )
    return _publish(build)


def _publish(build: Build, allocation: Mapping[str, Any] | None = None) -> Build:
    """The build with its report put beside the package; `allocation`: how widths were chosen."""
    assert build.package is not None
    report, verdict = publish_report(
        Path(build.steps[-1].path) / "report.json",
        build.package / "reports",
        steps=[step.model_dump(exclude={"facts", "path"}) for step in build.steps],
        allocation=allocation,
    )
    return replace(build, verdict=verdict, report=report)


def exit_code(builds: Sequence[Build]) -> int:
    """The exit code of finished builds: 1 before 5 before 0."""
    verdicts = {build.verdict for build in builds}
    if "fail" in verdicts:
        return GATE_FAILED
    return INCONCLUSIVE if "inconclusive" in verdicts else PASS


def load_report(build: Build) -> Mapping[str, Any]:
    """The report of a finished build. Raises EdgetuneError when there is none."""
    if build.report is None:
        msg = f"{build.identifier}: no report was written"
        raise EdgetuneError(msg)
    report: Mapping[str, Any] = read_json(build.report)
    return report
