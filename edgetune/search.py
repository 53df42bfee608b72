"""`edgetune search`: the schemes on offer and a few choices by measurement, side by side.

Each row is a build of its own, `<recipe>.<scheme>`, through the same store: merge, reference and
sensitivities are made once. Or, without building: what the sensitivities predict, labelled so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.auto import read_choice
from edgetune.build import load_report, measure_sensitivities, run_builds
from edgetune.console import print_warning
from edgetune.errors import (
    GATE_FAILED,
    INCONCLUSIVE,
    PASS,
    STEP_FAILED,
    PlanError,
    Problem,
    StepFailedError,
    UsageError,
)
from edgetune.estimates import weight_shapes
from edgetune.optimize.allocation import Allocation, make_path
from edgetune.optimize.allocation_tries import Sensitivities
from edgetune.optimize.allocation_widths import EMBEDDING_MODULE, smallest_graph_bytes
from edgetune.optimize.schemes import (
    AUTO,
    SCHEMES,
    Scheme,
    find_scheme,
    make_widths,
    parse_scheme,
)
from edgetune.optimize.size import predict_graph_bytes
from edgetune.optimize.widths import Widths
from edgetune.plan import Plan
from edgetune.planning import plan_builds
from edgetune.recipe import Recipe
from edgetune.storage import plan_widths, storage_problems

# Of the way from the smallest graph to that of 8 bits everywhere: where sizes are asked for.
_POINTS = (0.1, 0.25, 0.5)
_PREDICTED_POINTS = 12
# What a row has beside scheme, label and verdict; null where it was not measured.
_FIGURES = (
    *("bytes", "graph_bytes", "kl_mean", "top1_agreement", "retention", "task_metrics"),
    *("prefill_tokens_per_s", "decode_tokens_per_s", "reason", "package", "report"),
)


def plan_rows(recipe: Recipe, schemes: Sequence[str], device: str | None, out: Path) -> list[Plan]:
    """A plan for each row: of the named schemes, else of all on offer, `auto`, and `auto` at a few
    sizes. Raises PlanError listing every problem of every row."""
    if not schemes:
        first = _plan(recipe, AUTO.name, device, out)
        schemes = [*_on_offer(first), AUTO.name, *_sizes(first)]
    plans: list[Plan] = []
    problems: list[Problem] = []
    for scheme in dict.fromkeys(schemes):
        try:
            plans.append(_plan(recipe, scheme, device, out))
        except PlanError as why:
            problems += why.problems
        except UsageError as why:
            problems.append(Problem(why.message, why.hint))
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    return plans


def run_rows(plans: Sequence[Plan], out: Path) -> list[dict[str, Any]]:
    """Build and validate each plan: the rows, smallest package first, those on the frontier marked.

    A row whose step fails says why; the others go on.
    """
    rows = []
    for plan in plans:
        try:
            (build,) = run_builds([plan], out)
        except StepFailedError as why:
            print_warning(f"{_text_of(plan)} was not built: {why.message}")
            rows.append({**_empty(_text_of(plan), "not built"), "reason": why.message})
            continue
        rows.append(_measured(_text_of(plan), load_report(build)))
        rows[-1] |= {"package": str(build.package), "report": str(build.report)}
    return mark_frontier(rows)


def predict_rows(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """What the sensitivities say, without a build: every scheme that rounds as `auto` does, and
    points of the greedy path. KL is predicted, on calibration text."""
    plan, facts = measure_sensitivities(plan, out)
    found = read_choice(plan, out.resolve() / "steps", facts.get("kl_base")).found
    rows = []
    for name in _on_offer(plan):
        allocation = _uniform(make_widths(find_scheme(name)), found)
        if allocation is not None:
            rows.append(_predicted(name, allocation, found))
    path = make_path(found.options)
    for number in range(_PREDICTED_POINTS):
        place = round(number * (len(path) - 1) / (_PREDICTED_POINTS - 1))
        bits = math.ceil(800 * found.graph_bytes(path[place]) / found.parameters) / 100
        rows.append(_predicted(f"{AUTO.name}-{bits:g}", path[place], found))
    return mark_frontier(rows)


def mark_frontier(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows by size, with `frontier`: no other is both smaller (or equal) and nearer."""
    known = [row for row in rows if row["bytes"] is not None and row["kl_mean"] is not None]

    def beaten(row: Mapping[str, Any]) -> bool:
        own = (row["bytes"], row["kl_mean"]["value"])
        for other in known:
            its = (other["bytes"], other["kl_mean"]["value"])
            if its != own and its[0] <= own[0] and its[1] <= own[1]:
                return True
        return False

    marked = [{**row, "frontier": row in known and not beaten(row)} for row in rows]
    return sorted(marked, key=lambda row: (row["bytes"] is None, row["bytes"], row["scheme"]))


def exit_code(rows: Sequence[Mapping[str, Any]]) -> int:
    """0 where a row passes (or nothing was to be built), else 6, 1 or 5."""
    verdicts = {row["verdict"] for row in rows}
    if "pass" in verdicts or verdicts == {None}:
        return PASS
    if "not built" in verdicts:
        return STEP_FAILED
    return GATE_FAILED if "fail" in verdicts else INCONCLUSIVE


def _plan(recipe: Recipe, scheme: str, device: str | None, out: Path) -> Plan:
    quantizes = parse_scheme(scheme)[0].algorithm is not None
    changes: dict[str, Any] = {
        "name": f"{recipe.name}.{scheme}"[:64],
        "scheme": scheme,
        "group_size": None,
        "protect": recipe.protect if quantizes else {},
    }
    own = recipe.model_copy(update=changes)
    plans = plan_builds(own, [device] if device else recipe.devices[:1], out)
    if len(plans) != 1:
        msg = "a search is for one device"
        raise UsageError(msg, "name one with -d")
    return plans[0]


def _text_of(plan: Plan) -> str:
    """The scheme as the row's recipe writes it."""
    return plan.recipe.scheme


def _on_offer(plan: Plan) -> list[str]:
    """Schemes that the provider has kernels for and this base can be stored by."""
    return [
        name
        for name, row in SCHEMES.items()
        if plan.provider in row.providers and not _stored_otherwise(plan, row)
    ]


def _stored_otherwise(plan: Plan, scheme: Scheme) -> bool:
    base, adapters = plan.inputs.base, [entry.adapter for entry in plan.inputs.adapters]
    widths = plan_widths(plan.recipe, scheme, None, base, adapters)
    return any(storage_problems(plan.recipe, scheme, widths, base, plan.merges_onto))


def _sizes(plan: Plan) -> list[str]:
    """`auto-N` for a few sizes."""
    base = plan.inputs.base
    shapes = weight_shapes(base)
    protected = make_widths(AUTO, None, plan.recipe.protect)
    smallest = smallest_graph_bytes(base.config, shapes, base.tied, protected)
    eight = make_widths(SCHEMES["w8a16-rtn"])
    largest = predict_graph_bytes(base.config, shapes, base.tied, eight).total
    weights = sum(math.prod(shape) for shape in shapes.values())
    sizes = [smallest + share * max(0, largest - smallest) for share in _POINTS]
    return [f"{AUTO.name}-{math.ceil(800 * size / weights) / 100:g}" for size in sizes]


def _uniform(widths: Widths, found: Sensitivities) -> Allocation | None:
    """The scheme's widths as an allocation; null where one was not measured or predicted."""
    own = make_widths(AUTO).default.algorithm
    chosen = {}
    for module, given in found.options.items():
        width = widths.of_embedding() if module == EMBEDDING_MODULE else widths.of(module)
        option = next((o for o in given if o.width == width.name), None)
        if option is None or width.algorithm not in (own, None) or not width.symmetric:
            return None
        chosen[module] = option
    return Allocation(chosen)


def _empty(scheme: str, verdict: str | None) -> dict[str, Any]:
    return {"scheme": scheme, "label": "", "verdict": verdict, **dict.fromkeys(_FIGURES)}


def _predicted(scheme: str, allocation: Allocation, found: Sensitivities) -> dict[str, Any]:
    size, kl = found.graph_bytes(allocation), found.together(allocation.kl)
    figures = {"bytes": size, "graph_bytes": size, "kl_mean": {"value": kl}}
    return {**_empty(scheme, None), "label": "predicted", **figures}


def _measured(scheme: str, report: Mapping[str, Any]) -> dict[str, Any]:
    side, fidelity = report["latency"]["candidate"] or {}, report["fidelity"]
    return {
        **_empty(scheme, report["verdict"]),
        "label": "measured",
        "bytes": report["size"]["package_bytes"],
        "graph_bytes": report["size"]["graph_bytes"],
        **{name: fidelity[name] for name in ("kl_mean", "top1_agreement", "retention")},
        "task_metrics": report["task_metrics"],
        "prefill_tokens_per_s": side.get("prefill_tokens_per_s"),
        "decode_tokens_per_s": side.get("decode_tokens_per_s"),
        "reason": report["latency"]["reason"],
    }
