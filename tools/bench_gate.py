"""How often the gate is right: by simulation on measured noise, or by repeated measurement here.

    python tools/bench_gate.py                 the tables of docs/gates.md, 1,000 runs a row
    python tools/bench_gate.py --here 20       identical work measured 20 times on this machine

A simulated measurement takes its rounds from the traces in tools/data/latency_traces.json: each
launch a stretch of neighbouring rounds of one session, so that drift, bursts and autocorrelation
stay, with its sides exchanged by a coin, so that the two are equal in truth. What two processes of
the same program differ by is taken out of each session and drawn anew for each launch, with the
spread that the sessions show. The rounds then go through edgetune's own plan, rule for further
launches, interval and verdict. Accuracy runs draw what is lost and gained by n items.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune import paired_times, statistics
from edgetune.report.schema import Interval
from edgetune.report.verdict import decide
from edgetune.validate.gate_self_test import FLIPS, LOSS, MARGIN, RATIO_LIMIT, measure_ratio
from edgetune.validate.rounds import LAUNCH_ROUNDS, another_launch, plan_rounds

TRACES = Path(__file__).parent / "data" / "latency_traces.json"
SLOWDOWNS = (1.0, 1.05, 1.10)
SETTLE_S = 0.05
# What it takes to start both processes again.
LAUNCH_S = 2.5

# Blocks in ms: [rounds, the four blocks A B B A, answers].
Session = npt.NDArray[np.float64]
Row = tuple[str, ...]


def load_traces(path: Path = TRACES) -> tuple[dict[str, Any], dict[str, list[Session]]]:
    """(what was recorded, {sort: its sessions}); sorts without a session are left out."""
    value = json.loads(path.read_text(encoding="utf-8"))
    found = {
        name: [np.array(s["blocks"]).reshape(-1, 4, len(s["blocks"][0])) for s in sessions]
        for name, sessions in value.pop("sessions").items()
        if sessions
    }
    return value, found


def process_spread(sessions: Sequence[Session]) -> tuple[float, list[float]]:
    """(the standard deviation of what two processes of the same program differ by, in the
    logarithm; how much of it each session has). The sessions' ratios vary by more than their rounds
    explain, or it is 0; a session's own share is its ratio shrunk by how well it is known."""
    logs = [_log_ratios(session) for session in sessions]
    means = np.array([values.mean() for values in logs])
    explained = np.array([values.var(ddof=1) / len(values) for values in logs])
    # Two equal programs differ by 0 in truth: not by the sessions' own mean.
    variance = max(0.0, float(np.mean(means**2 - explained)))
    own = means * variance / (variance + explained) if variance else np.zeros(len(means))
    return math.sqrt(variance), own.tolist()


def simulate_run(
    sessions: Sequence[Session], slowdown: float, generator: np.random.Generator
) -> tuple[statistics.Interval, int, float]:
    """(the ratio that one measurement of a side that is slower by `slowdown` gives, its launches,
    its seconds)."""
    spread, own = process_spread(sessions)
    answers = min(session.shape[2] for session in sessions)
    below, above = np.empty((0, 2 * answers)), np.empty((0, 2 * answers))
    numbers: list[int] = []
    elapsed, took, launches, rounds = 0.0, 0.0, 0, 0

    def ratio() -> statistics.Interval:
        return paired_times.ratio_of_medians(below, above, numbers)

    while launches == 0 or another_launch(launches, elapsed, took, ratio):
        pick = int(generator.integers(len(sessions)))
        a, b = _sides(sessions[pick][:, :, :answers])
        if launches == 0:
            rounds, _ = plan_rounds([float(np.median(a)) / 1e3, float(np.median(b)) / 1e3])
        count = rounds if launches == 0 else LAUNCH_ROUNDS
        first = int(generator.integers(max(1, len(a) - count + 1)))
        a, b = a[first : first + count], b[first : first + count] * math.exp(-own[pick])
        if generator.random() < 0.5:
            a, b = b, a
        b = b * slowdown * math.exp(generator.normal(0.0, spread))
        took = float(a.sum() + b.sum()) / 1e3 + 4 * SETTLE_S * len(a) + LAUNCH_S * (launches > 0)
        below, above = np.concatenate([below, a]), np.concatenate([above, b])
        numbers += [launches] * len(a)
        launches, elapsed = launches + 1, elapsed + took
    return ratio(), launches, elapsed


def latency_rows(
    traces: Mapping[str, Sequence[Session]], runs: int, progress: Callable[[str], None]
) -> list[Row]:
    """A row for every sort of machine and slowdown."""
    rows: list[Row] = []
    for name, sessions in traces.items():
        for slowdown in SLOWDOWNS:
            progress(f"{name}, × {slowdown:g}")
            generator = np.random.default_rng(0)
            verdicts: Counter[str] = Counter()
            halves, counts, times, missed = [], [], [], 0
            for _ in range(runs):
                found, launches, seconds = simulate_run(sessions, slowdown, generator)
                verdicts[_decide(found, RATIO_LIMIT)] += 1
                halves.append(math.log(found.high / found.low) / 2)
                counts.append(launches)
                times.append(seconds)
                missed += found.low > slowdown
            label = "A/A" if slowdown == 1 else f"+{slowdown - 1:.0%}"
            width = f"± {100 * float(np.median(halves)):.1f} %"
            low = f"{missed / runs:.1%}"
            medians = (f"{float(np.median(counts)):.0f}", f"{float(np.median(times)):.0f}")
            rows.append((name, label, *_shares(verdicts, runs), width, low, *medians))
    return rows


def accuracy_rows(runs: int) -> list[Row]:
    """A row for every question: a margin, a true loss, a share of flips, and n."""
    rows: list[Row] = []
    told = statistics.items_to_tell(MARGIN, LOSS, FLIPS)
    for margin, loss, flips, n in (
        (MARGIN, 0.0, 0.0, statistics.items_needed(MARGIN)),
        (MARGIN, 0.0, FLIPS, told),
        (MARGIN, MARGIN, FLIPS, told),
        (MARGIN, LOSS, FLIPS, told),
        (0.02, 0.0, FLIPS, statistics.items_to_tell(0.02, 0.0, FLIPS)),
        (0.02, 0.02, 0.05, statistics.items_to_tell(0.02, 0.0, 0.05)),
        (0.02, 0.04, 0.06, statistics.items_to_tell(0.02, 0.04, 0.06)),
    ):
        shares = [(flips + loss) / 2, (flips - loss) / 2, 1 - flips]
        verdicts: Counter[str] = Counter()
        for lost, gained, _ in np.random.default_rng(0).multinomial(n, shares, size=runs):
            found = statistics.paired_proportions(int(lost), int(gained), n)
            loss_found = statistics.Interval(-found.value, -found.high, -found.low)
            verdicts[_decide(loss_found, margin)] += 1
        true = "A/A" if loss == 0 else f"−{_points(loss)}"
        rows.append((_points(margin), true, f"{flips:.0%}", f"{n:,}", *_shares(verdicts, runs)))
    return rows


def repeat_here(times: int) -> None:
    """Measure identical work `times` times, and print each verdict."""
    verdicts: Counter[str] = Counter()
    print("| run | ratio | low | high | verdict | s |\n|---|---|---|---|---|---|")
    for number in range(times):
        started = time.monotonic()
        found = measure_ratio(1.0, lambda _: None)
        verdict = _decide(found, RATIO_LIMIT)
        verdicts[verdict] += 1
        cells = [f"{v:.3f}" for v in (found.value, found.low, found.high)]
        seconds = f"{time.monotonic() - started:.0f}"
        print(_line((str(number + 1), *cells, verdict, seconds)), flush=True)
    print(f"\nA/A against {RATIO_LIMIT:g}: " + ", ".join(f"{v} {n}" for v, n in verdicts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--here", type=int, metavar="N", help="measure on this machine, N times")
    parser.add_argument("--traces", type=Path, default=TRACES)
    options = parser.parse_args()
    if options.here:
        repeat_here(options.here)
        return
    head, traces = load_traces(options.traces)
    print(f"Noise recorded with {head['what']}, {head['threads']} threads, {head['cpu']}.\n")
    for name, sessions in traces.items():
        rounds = sum(map(len, sessions))
        spread, _ = process_spread(sessions)
        print(
            f"* {name}: {len(sessions)} sessions, {rounds} rounds; two processes differ by "
            f"{spread:.1%}"
        )
    columns: Row = ("machine", "truth", "pass", "inconclusive", "fail", "median width",
               "low bound above the truth", "launches", "s")  # fmt: skip
    print(f"\nTime to answer, limit {RATIO_LIMIT:g} × the reference, {options.runs} runs each:\n")
    _table(columns, latency_rows(traces, options.runs, lambda t: print(t, file=sys.stderr)))
    columns = ("margin", "truth", "flips", "n", "pass", "inconclusive", "fail")
    print(f"\nAccuracy, paired, {options.runs} runs each:\n")
    _table(columns, accuracy_rows(options.runs))


def _log_ratios(session: Session) -> npt.NDArray[np.float64]:
    """Of each round, B to A."""
    below, above = _sides(session)
    ratios: npt.NDArray[np.float64] = np.log(np.median(above, 1)) - np.log(np.median(below, 1))
    return ratios


def _sides(blocks: Session) -> tuple[Session, Session]:
    """[rounds, times] of A and of B."""
    rounds = len(blocks)
    return blocks[:, [0, 3]].reshape(rounds, -1), blocks[:, [1, 2]].reshape(rounds, -1)


def _decide(found: statistics.Interval, limit: float) -> str:
    return decide(Interval(**found.as_dict()), limit, "above")


def _shares(verdicts: Mapping[str, int], runs: int) -> tuple[str, ...]:
    return tuple(f"{verdicts.get(v, 0) / runs:.1%}" for v in ("pass", "inconclusive", "fail"))


def _points(share: float) -> str:
    return f"{100 * share:g} point" + ("" if share == 0.01 else "s")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    print(_line(columns))
    print("|---|" + "---:|" * (len(columns) - 1))
    for row in rows:
        print(_line(row))


if __name__ == "__main__":
    main()
