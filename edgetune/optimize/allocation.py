"""Bits under a budget: which width each module gets.

Every module has options, each with bytes and with the KL that it costs when it alone is stored so.
Costs of different modules add up nearly (rounding errors are independent and small), so this is the
multiple-choice knapsack problem. It is solved greedily: from the smallest options on, always the
upgrade that saves the most KL a byte, over each module's lower convex hull. That is the optimum of
the linear relaxation (Sinha & Zoltners 1979, "The Multiple-Choice Knapsack Problem"), so every
point of the path is exact for its own bytes; between two points, what is left is filled greedily,
also with a large module's step taken first.
Equal ratios are taken in the order of names: the same numbers give the same allocation.

Speed enters by bytes alone: a token reads each quantized matrix once, so the smallest package is
the fastest that is predicted, as long as no option is slow for its bytes (`allocation_widths`
offers none). No latency is asked, for a build machine is not the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Option:
    """One way to store a module: the width as `widths` writes it, its bytes, and KL(trained ‖ this
    module alone stored so) in nats a token."""

    width: str
    bytes: int
    kl: float


Options = Mapping[str, Sequence[Option]]

_ROUNDING = 1e-9
# Modules whose steps may be too large for what the others leave.
_LARGEST = 4


@dataclass(frozen=True)
class Allocation:
    """An option for every module, and the sums over them."""

    chosen: Mapping[str, Option]

    @property
    def bytes(self) -> int:
        """Of all modules' weights; a token reads them all."""
        return sum(option.bytes for option in self.chosen.values())

    @property
    def kl(self) -> float:
        """The sum of what each module costs alone, nats a token: predicted."""
        return sum(option.kl for _, option in sorted(self.chosen.items()))

    @property
    def widths(self) -> dict[str, str]:
        """{module: width}."""
        return {module: option.width for module, option in sorted(self.chosen.items())}

    def having(self, module: str, option: Option) -> Allocation:
        """The same with another option for one module."""
        return Allocation({**self.chosen, module: option})


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of (bytes, KL), smallest first: what is larger costs
    less, at a falling rate."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bytes, o.kl, o.width)):
        if found and option.kl >= found[-1].kl:
            continue
        while len(found) > 1 and _rate(found[-2], found[-1]) <= _rate(found[-2], option):
            found.pop()
        found.append(option)
    return found


def make_path(options: Options) -> list[Allocation]:
    """Every allocation of the greedy way, from the smallest to the one that costs least."""
    hulls = {module: hull(given) for module, given in sorted(options.items())}
    path = [Allocation({module: given[0] for module, given in hulls.items()})]
    for module, option in _upgrades(hulls):
        path.append(path[-1].having(module, option))
    return path


def best_under(options: Options, budget: int) -> Allocation | None:
    """The allocation that costs least within `budget` bytes; null where the smallest is larger.

    A large module's step may find no room once many small ones were taken, and be worth more than
    all of them: the ways on which one of the largest modules has its option first are gone as well.
    """
    hulls = {module: hull(given) for module, given in sorted(options.items())}
    start = Allocation({module: given[0] for module, given in hulls.items()})
    if start.bytes > budget:
        return None
    ways = [_filled(start, hulls, budget)]
    largest = sorted(hulls, key=lambda module: (-hulls[module][-1].bytes, module))[:_LARGEST]
    for module in largest:
        rest = {other: given for other, given in hulls.items() if other != module}
        firsts = [start.having(module, option) for option in hulls[module][1:]]
        ways += [_filled(first, rest, budget) for first in firsts if first.bytes <= budget]
    return min(ways, key=lambda way: (way.kl, way.bytes))


def smallest_within(options: Options, kl: float) -> Allocation | None:
    """The smallest allocation found whose modules cost at most `kl` together; null where even the
    best costs more.

    Where the path crosses the limit with one large step, the way without that step is gone as
    well, and of both what was not needed is taken back.
    """
    hulls = {module: hull(given) for module, given in sorted(options.items())}
    start = Allocation({module: given[0] for module, given in hulls.items()})
    first = _reached(start, _upgrades(hulls), kl)
    if first is None:
        return None
    reached, last = first
    ways = [reached]
    if last is not None:
        rest = [step for step in _upgrades(hulls) if step[0] != last]
        held = {module: option for module, option in reached.chosen.items() if module == last}
        before = {**start.chosen, last: _option_before(hulls[last], held[last])}
        other = _reached(Allocation(before), iter(rest), kl)
        if other is not None:
            ways.append(other[0])
    return min((_trimmed(way, hulls, kl) for way in ways), key=lambda found: found.bytes)


def _rate(smaller: Option, larger: Option) -> float:
    """KL saved a byte."""
    return (smaller.kl - larger.kl) / (larger.bytes - smaller.bytes)


def _upgrades(hulls: Mapping[str, Sequence[Option]]) -> Iterator[tuple[str, Option]]:
    """(module, its next option), the best rate first; along a hull rates fall, so that a module's
    upgrades come in their order."""
    steps = [
        (-_rate(smaller, larger), module, number, larger)
        for module, given in hulls.items()
        for number, (smaller, larger) in enumerate(pairwise(given))
    ]
    for _, module, _, option in sorted(steps, key=lambda step: step[:3]):
        yield module, option


def _filled(found: Allocation, hulls: Mapping[str, Sequence[Option]], budget: int) -> Allocation:
    stopped: set[str] = set()
    left = budget - found.bytes
    chosen = dict(found.chosen)
    for module, option in _upgrades(hulls):
        more = option.bytes - chosen[module].bytes
        if module in stopped or more > left:
            stopped.add(module)
            continue
        chosen[module], left = option, left - more
    return Allocation(chosen)


def _reached(
    start: Allocation, steps: Iterator[tuple[str, Option]], kl: float
) -> tuple[Allocation, str | None] | None:
    """(the first allocation within the limit, the module of the last step); null for none."""
    chosen, cost, last = dict(start.chosen), start.kl, None
    while True:
        # A running sum of floats is off in its last digits; the sum itself decides.
        if cost <= kl + _ROUNDING and (found := Allocation(dict(chosen))).kl <= kl:
            return found, last
        step = next(steps, None)
        if step is None:
            return None
        last, option = step
        cost += option.kl - chosen[last].kl
        chosen[last] = option


def _option_before(given: Sequence[Option], option: Option) -> Option:
    return given[max(0, list(given).index(option) - 1)]


def _trimmed(found: Allocation, hulls: Mapping[str, Sequence[Option]], kl: float) -> Allocation:
    """Without upgrades that the limit does not ask for, those that free most bytes first."""
    while True:
        smaller = [
            (found.chosen[module].bytes - before.bytes, module, before)
            for module, given in hulls.items()
            if (before := _option_before(given, found.chosen[module])) != found.chosen[module]
            and found.kl + before.kl - found.chosen[module].kl <= kl
        ]
        if not smaller:
            return found
        _, module, option = max(smaller, key=lambda step: (step[0], step[1]))
        found = found.having(module, option)
