"""From sensitivities to the widths that are built, and from a build's figures to the next try.

What the modules cost alone, added up, predicts what they cost together; some allocations were also
measured together, on the same calibration text, and the prediction is corrected by their ratio. A
build that was verified corrects it again, for what calibration text and float activations leave
out. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.optimize.allocation import Allocation, Option, Options, best_under, smallest_within
from edgetune.optimize.allocation_widths import beside_others

# With the sensitivities, four take the time of three to five builds.
MOST_TRIES = 4
# Of a limit on KL: the upper bound must be within it, and on the demo's recipes evaluation items
# cost up to twice what calibration text does.
_FIRST_MARGIN, _NEXT_MARGIN = 0.5, 0.9
# Where to begin, where answers count: on the demo 0.02 nats lose 5 to 7 answers of a hundred, 0.002
# one, and a bound within two of a hundred leaves room for none.
_LOST_PER_NAT = 20.0
# A try that missed is followed by one that costs less; one that passed by one that is clearly
# smaller, or by none; between the two, by one half way.
_LESS, _FAR_LESS, _SMALLER = 0.97, 1 / 3, 0.98
# Nor is one more than so many times as bold as what passed.
_BOLDER = 4.0


@dataclass(frozen=True)
class Joint:
    """An allocation measured as a whole: what its modules cost alone, added, and together."""

    added: float
    kl: float


@dataclass(frozen=True)
class Sensitivities:
    """What each module costs at each width; `fixed_bytes`: of the graph, which no width changes."""

    options: Options
    fixed_bytes: int
    parameters: int
    joint: tuple[Joint, ...]
    # `beside_others`: what the options cost of what they cost alone.
    share: float = 1.0

    def alone(self, module: str, option: Option) -> float:
        """What the module costs alone, four digits, as it was measured or predicted."""
        beside = beside_others(module, 1.0, self.share)
        return float(f"{option.kl / beside:.4g}") if beside else option.kl

    def graph_bytes(self, allocation: Allocation) -> int:
        """model.onnx and its data: predicted."""
        return self.fixed_bytes + allocation.bytes

    def together(self, added: float) -> float:
        """The KL to be expected where the modules' own add up to `added`: their ratio is
        interpolated between the measured allocations."""
        known = sorted((j for j in self.joint if j.added > 0 and j.kl > 0), key=lambda j: j.added)
        if added <= 0 or not known:
            return max(0.0, added)
        places = [math.log(j.added) for j in known]
        ratios = [math.log(j.kl / j.added) for j in known]
        return added * math.exp(_interpolated(places, ratios, math.log(added)))

    def added_within(self, kl: float) -> float:
        """The largest sum of the modules' own KL of which `kl` may be expected together."""
        low, high = 0.0, max(kl, *(j.added for j in self.joint), 1e-12) * 1e3
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.together(middle) <= kl else (low, middle)
        return low


@dataclass(frozen=True)
class Wanted:
    """What the recipe asks: the largest KL that its tolerances allow; or, with `graph_bytes` alone,
    the best of that size."""

    kl: float | None
    graph_bytes: int | None = None
    # The share of answers that may be lost; null where the data expects none.
    lost_answers: float | None = None


@dataclass(frozen=True)
class Try:
    """An allocation that was built; `kl`: the upper bound of what was verified, in units of the
    limit; `met`: every tolerance; `missed`: those that were not."""

    allocation: Allocation
    kl: float
    met: bool
    missed: tuple[str, ...] = ()

    @property
    def lost_answers(self) -> bool:
        """Whether the task's metric fell too far."""
        return any(name.endswith("_drop") for name in self.missed)


def read_sensitivities(value: Mapping[str, Any], protect: Mapping[str, str]) -> Sensitivities:
    """The sensitivity step's result. `protect`, {module: width}: these have that one option. What a
    module in a layer costs is what it costs beside others."""
    share = float(value["share_beside_others"])
    options = {
        module["name"]: tuple(
            Option(
                option["width"],
                int(option["bytes"]),
                beside_others(module["name"], float(option["kl"]), share),
            )
            for option in module["options"]
            if protect.get(module["name"], option["width"]) == option["width"]
        )
        for module in value["modules"]
    }
    joint = tuple(Joint(float(j["added"]), float(j["kl"])) for j in value["joint"])
    return Sensitivities(options, int(value["fixed_bytes"]), int(value["parameters"]), joint, share)


def next_choice(found: Sensitivities, wanted: Wanted, tries: Sequence[Try]) -> Allocation | None:
    """What to build next; null when there is nothing better to try.

    The first: the smallest of which the tolerances may be expected, else the best within the
    budget. After a miss: one that costs less; after a success: a smaller one, where that promises
    at least two per cent.
    """
    room = None if wanted.graph_bytes is None else wanted.graph_bytes - found.fixed_bytes
    if wanted.kl is None:
        return None if tries or room is None else best_under(found.options, room)
    if len(tries) >= MOST_TRIES:
        return None
    choice = smallest_within(found.options, _allowed(found, wanted.kl, wanted.lost_answers, tries))
    met = [t.allocation for t in tries if t.met]
    if met:
        small_enough = choice is not None and choice.bytes <= _SMALLER * min(m.bytes for m in met)
        return choice if small_enough else None
    if choice is None or (room is not None and choice.bytes > room):
        # Nothing within the budget promises it: the nearest miss.
        choice = best_under(found.options, room) if room is not None else None
    tried = [t.allocation.widths for t in tries]
    return None if choice is None or choice.widths in tried else choice


def _allowed(
    found: Sensitivities, kl: float, lost_answers: float | None, tries: Sequence[Try]
) -> float:
    """What the modules may cost together, added up, for `kl` to be expected of a build."""
    if not tries:
        first = kl * _FIRST_MARGIN
        if lost_answers is not None:
            first = min(first, lost_answers / _LOST_PER_NAT)
        return found.added_within(first)
    last = tries[-1]
    expected = found.together(last.allocation.kl)
    ratio = last.kl / expected if expected > 0 and last.kl > 0 else 1.0
    limits = [kl * _NEXT_MARGIN / ratio]
    met = [found.together(t.allocation.kl) for t in tries if t.met]
    missed = [found.together(t.allocation.kl) for t in tries if not t.met]
    # Answers are lost one by one, and not in proportion to KL: a few more bits may lose as many.
    if met and missed:
        limits.append(math.sqrt(max(met) * min(missed)))
    elif met and lost_answers is not None:
        limits.append(max(met) * _BOLDER)
    elif any(t.lost_answers for t in tries):
        limits.append(_FAR_LESS * min(missed))
    allowed = min(found.added_within(limit) for limit in limits)
    return min([allowed, *(_LESS * t.allocation.kl for t in tries if not t.met)])


def best_try(tries: Sequence[Try]) -> Try:
    """The smallest that met every tolerance, else the nearest miss: the one that costs least."""
    met = [t for t in tries if t.met]
    if met:
        return min(met, key=lambda t: t.allocation.bytes)
    return min(tries, key=lambda t: t.kl)


def what_it_would_take(found: Sensitivities, wanted: Wanted, tries: Sequence[Try]) -> str:
    """For a nearest miss, in words; empty where the tolerances were met."""
    best = best_try(tries)
    if best.met:
        return ""
    missed = ", ".join(best.missed) or "its tolerances"
    text = f"the nearest allocation misses {missed}"
    if wanted.kl is None:
        return f"{text}: allow more bits, or widen the tolerance"
    larger = smallest_within(found.options, _allowed(found, wanted.kl, wanted.lost_answers, tries))
    now = found.graph_bytes(best.allocation)
    if larger is None or larger.bytes <= best.allocation.bytes:
        return f"{text}: no width on offer is expected to reach it; widen the tolerance"
    more = found.graph_bytes(larger) - now
    text += f": a graph of about {found.graph_bytes(larger) / 1e6:.2f} MB would be needed"
    text += f" (predicted), {more / 1e6:.2f} MB more"
    if wanted.graph_bytes is not None and found.graph_bytes(larger) > wanted.graph_bytes:
        return f"{text} than budgets.package_bytes leaves room for"
    return f"{text}; {len(tries)} were built, which is the limit"


def _interpolated(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """Linear between the places, constant beyond them."""
    if place <= places[0]:
        return values[0]
    for number in range(1, len(places)):
        if place <= places[number]:
            share = (place - places[number - 1]) / (places[number] - places[number - 1])
            return values[number - 1] + share * (values[number] - values[number - 1])
    return values[-1]
