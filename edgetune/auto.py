"""`scheme: auto`: from sensitivities and the recipe's limits to widths, tried until they are met.

What is tried is decided by fidelity alone, measured by the normal validation: never by latency, so
that the same inputs give the same package. A verification that is in the store is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune.environments.emulator import Emulation
from edgetune.errors import UsageError
from edgetune.files import list_files, read_json
from edgetune.host import Host
from edgetune.line import package_step, reference_step, sensitivity_step, validate_step
from edgetune.optimize.allocation import Allocation
from edgetune.optimize.allocation_tries import (
    Sensitivities,
    Try,
    Wanted,
    best_try,
    next_choice,
    read_sensitivities,
    what_it_would_take,
)
from edgetune.optimize.allocation_widths import (
    EMBEDDING_MODULE,
    MEASURED,
    own_widths,
    plain_width,
)
from edgetune.optimize.schemes import make_widths
from edgetune.plan import Plan
from edgetune.report.questions import DROP, EMULATED, LONG_CONTEXT
from edgetune.sensitivity import RESULT
from edgetune.step import folder_of, path_of, read_record

Reports = Sequence[Mapping[str, Any]]
# Manifest, lock, checksums, settings, and what the graph's folder holds besides weights.
_SMALL_FILES_BYTES = 64_000
# Where nothing at all is allowed.
_FAR_TOO_MUCH = 100.0


@dataclass(frozen=True)
class Choice:
    """What `auto` has to choose from, what is asked of it, and what came of its tries."""

    found: Sensitivities
    wanted: Wanted
    tries: tuple[Try, ...] = ()

    @property
    def best(self) -> Try:
        """The smallest try that met the tolerances, else the nearest miss."""
        return best_try(self.tries)


def read_choice(plan: Plan, store: Path, kl_base: float | None) -> Choice:
    """The choice of a plan whose merge, reference and sensitivities are done; `kl_base`: the
    reference step's. Raises UsageError where the smallest allocation is over the budget."""
    value = read_json(path_of(store, sensitivity_step(plan, store)) / RESULT)
    protected = make_widths(plan.scheme, None, plan.recipe.protect)
    protect = own_widths(protected, [module["name"] for module in value["modules"]])
    found = read_sensitivities(value, protect)
    wanted = _wanted(plan, store, found, kl_base)
    smallest = found.fixed_bytes + sum(
        min(option.bytes for option in given) for given in found.options.values()
    )
    if wanted.graph_bytes is not None and wanted.graph_bytes < smallest:
        beside = _beside_graph_bytes(plan, store)
        msg = (
            f"{plan.recipe.name}: the smallest possible graph takes {smallest} bytes (predicted), "
            f"{wanted.graph_bytes} are left for it; {beside} are taken by what ships beside it"
        )
        raise UsageError(msg, "raise budgets.package_bytes, or ask for more bits a weight")
    return Choice(found, wanted)


def try_choices(choice: Choice, verify: Callable[[Allocation], Reports | None]) -> Choice | None:
    """The choice with its tries; `verify` gives the reports of an allocation that was built, null
    where they are not known: then the whole is null."""
    while allocation := next_choice(choice.found, choice.wanted, choice.tries):
        reports = verify(allocation)
        if reports is None:
            return None
        made = judge_try(allocation, reports, choice.wanted)
        choice = replace(choice, tries=(*choice.tries, made))
    return choice


def first_choice(choice: Choice) -> Allocation:
    """What would be built first."""
    allocation = next_choice(choice.found, choice.wanted, ())
    assert allocation is not None  # the budget has room for the smallest
    return allocation


def with_choice(plans: Sequence[Plan], allocation: Allocation) -> list[Plan]:
    """The plans with these widths."""
    return [replace(plan, chosen=allocation.widths) for plan in plans]


def known_reports(
    plans: Sequence[Plan], out: Path, host: Host, emulations: Sequence[Emulation | str | None]
) -> list[dict[str, Any]] | None:
    """The reports of earlier validations of the package of these plans; null unless there is one of
    every device."""
    store, package = out / "steps", package_step(plans, out)
    reports = []
    for plan, emulation in zip(plans, emulations, strict=True):
        folder = folder_of(store, validate_step(plan, package, out, host, {}, emulation))
        if read_record(folder) is None or not (folder / "report.json").is_file():
            return None
        reports.append(read_json(folder / "report.json"))
    return reports


def judge_try(allocation: Allocation, reports: Reports, wanted: Wanted) -> Try:
    """What the reports' fidelity says of an allocation: its checks of tolerances, latency aside.

    KL is in units of the limit that was wanted, so that the check that is nearest to its limit
    counts. Lost answers are only met or missed: one of them is a large share of what is allowed,
    and says nothing of how many a few bits less would lose.
    """
    missed: dict[str, None] = {}
    excess = 0.0
    for check in (check for report in reports for check in report["checks"]):
        own = _share_of_limit(check)
        if own is None:
            continue
        if own > 1:
            missed[check["name"]] = None
        if not check["name"].endswith(DROP):
            excess = max(excess, own)
    kl = max(report["fidelity"]["kl_mean"]["high"] for report in reports)
    return Try(
        allocation, kl if wanted.kl is None else excess * wanted.kl, not missed, tuple(missed)
    )


def _share_of_limit(check: Mapping[str, Any]) -> float | None:
    """How much of what it allows a check of fidelity has used up, by its worse bound; above 1: too
    much. Null for the others, and for what was not measured."""
    name, limit, value = check["name"].removeprefix(EMULATED), check["limit"], check["value"]
    if value is None:
        return None
    used, allowed = 0.0, 1.0
    if name == "retention":
        used, allowed = 1 - check["low"], 1 - limit
    elif name in ("kl_mean", LONG_CONTEXT):
        used, allowed = check["high"], limit
    elif name.endswith(DROP):
        # Where nothing was lost, more bits do not help: too few items cannot exclude a loss.
        used, allowed = (check["high"], limit) if value > 0 else (0.0, 1.0)
    elif name == "finite_outputs":
        used, allowed = value, limit
    else:
        return None
    if used <= 0:
        return 0.0
    return used / allowed if allowed > 0 else _FAR_TOO_MUCH


def allocation_section(plan: Plan, choice: Choice) -> dict[str, Any]:
    """The report's `allocation`: the widths, what protecting costs, and how they were found."""
    found, best = choice.found, choice.best
    plain = Allocation(
        {
            module: next((o for o in given if o.width == plain_width(module)), given[0])
            for module, given in found.options.items()
        }
    )
    own = best.allocation
    return {
        "scheme": plan.scheme.name,
        "modules": [
            {
                "name": module,
                "width": option.width,
                "bytes": option.bytes,
                "kl_alone": found.alone(module, option),
            }
            for module, option in sorted(own.chosen.items())
        ],
        "predicted": {
            "graph_bytes": found.graph_bytes(own),
            "bytes_per_token": _bytes_per_token(own),
            "kl_mean": found.together(own.kl),
        },
        "plain": {
            "width": MEASURED,
            "graph_bytes": found.graph_bytes(plain),
            "bytes_per_token": _bytes_per_token(plain),
            "kl_mean": found.together(plain.kl),
        },
        "wanted_kl": choice.wanted.kl,
        "graph_bytes_budget": choice.wanted.graph_bytes,
        "tries": [
            {
                "graph_bytes": found.graph_bytes(made.allocation),
                "kl_predicted": found.together(made.allocation.kl),
                "kl_verified_bound": made.kl,
                "met": made.met,
                "missed": list(made.missed),
            }
            for made in choice.tries
        ],
        "would_take": what_it_would_take(found, choice.wanted, choice.tries) or None,
    }


def _bytes_per_token(allocation: Allocation) -> int:
    """Of quantized matrices: all of them, but for an embedding of its own, of which it is a row."""
    looked_up = allocation.chosen.get(EMBEDDING_MODULE)
    return allocation.bytes - (looked_up.bytes if looked_up else 0)


def _wanted(plan: Plan, store: Path, found: Sensitivities, kl_base: float | None) -> Wanted:
    tolerances, budget = plan.recipe.tolerances, plan.recipe.budgets.package_bytes
    room = [] if budget is None else [budget - _beside_graph_bytes(plan, store)]
    if plan.scheme.most_bits is not None:
        room.append(int(plan.scheme.most_bits * found.parameters / 8))
        return Wanted(None, min(room))
    limits = [] if tolerances.kl_mean is None else [tolerances.kl_mean]
    if tolerances.retention is not None and kl_base:
        limits.append((1 - tolerances.retention) * kl_base)
    if not limits:
        msg = f"{plan.recipe.name}: the fine-tune changed nothing, so no retention can be asked"
        raise UsageError(msg, "give tolerances.kl_mean, or a number of bits, such as auto-5.5")
    answers = tolerances.task_metric_drop if plan.inputs.evaluation is not None else None
    return Wanted(min(limits), min(room) if room else None, answers or None)


def _beside_graph_bytes(plan: Plan, store: Path) -> int:
    """What ships beside the graph: tokenizer, self-test, small files."""
    base = plan.inputs.base
    self_test = path_of(store, reference_step(plan, store)) / "self_test"
    files = [base.path / name for name in base.side_files]
    files += [self_test / name for name in list_files(self_test)]
    return sum(file.stat().st_size for file in files) + _SMALL_FILES_BYTES
