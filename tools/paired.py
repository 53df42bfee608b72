"""Runs commands in turn, round after round, and compares them: what a benchmark here is made of.

Rounds cancel what drifts on a machine; CPU seconds stand others' work on it better than wall time.
Peak memory is the largest process of a command (its own resident set, mapped pages included).
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Runs:
    """What the runs of one command took."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


def run_once(command: Sequence[str], runs: Runs) -> None:
    """Run one command, its output to a log shown when it fails. Exits when it does."""
    log = Path(f"bench-{os.getpid()}.log")
    started = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command), stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
    runs.wall_s.append(time.perf_counter() - started)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(
            f"{' '.join(command)}\nended with {process.returncode}:\n{log.read_text()[-3000:]}"
        )
    log.unlink()
    runs.cpu_s.append(usage.ru_utime + usage.ru_stime)
    # This process holds no library, so that what a child inherits of its peak is small.
    runs.peak_mb.append(usage.ru_maxrss * 1024 / 1e6)


def compare(
    commands: Mapping[str, Sequence[str]], rounds: int, outputs: Mapping[str, Path]
) -> dict[str, Runs]:
    """Run every command once a round, the order reversed in every second one; `outputs` are
    removed before each run, so that nothing is reused."""
    runs = {name: Runs() for name in commands}
    for number in range(rounds):
        names = list(commands) if number % 2 == 0 else list(commands)[::-1]
        for name in names:
            shutil.rmtree(outputs[name], ignore_errors=True)
            run_once(commands[name], runs[name])
            print(f"round {number + 1}: {name} {runs[name].wall_s[-1]:.1f} s", file=sys.stderr)
    return runs


def table(runs: Mapping[str, Runs], peer: str) -> str:
    """A Markdown table: medians, with smallest and largest, and each ratio to `peer`'s runs."""
    lines = [
        "| command | wall s | CPU s | peak MB | wall ÷ peer | CPU ÷ peer |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        base = runs[peer]
        cells = [
            name,
            spread(found.wall_s, ".1f"),
            spread(found.cpu_s, ".1f"),
            f"{max(found.peak_mb):.0f}",
            _ratio(found.wall_s, base.wall_s) if name != peer else "1",
            _ratio(found.cpu_s, base.cpu_s) if name != peer else "1",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], form: str) -> str:
    """Median, smallest and largest, as a table has them."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return spread([a / b for a, b in zip(ours, theirs, strict=True)], ".2f")
