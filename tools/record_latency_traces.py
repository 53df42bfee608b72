"""Records how long the same answers take, one after another, on this machine: the noise that
`tools/bench_gate.py` simulates with.

    python tools/record_latency_traces.py OUT/demo --sessions 8 --rounds 24

A session is two fresh processes that open the same package and answer in A B B A blocks, as the
latency measurement does; whatever differs between the two is noise. Sessions are sorted by the
share of the processors' time that all other processes took meanwhile, never by how the times came
out: idle, busy, overloaded. It records until every sort has its sessions or the time is over, and
writes tools/data/latency_traces.json after each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from edgetune.host import probe_host, usable_cores
from edgetune.runtime.manifest import choose_variant, read_manifest
from edgetune.validate.latency import CANDIDATE_MODULE, NEW_TOKENS, PROMPT_TOKENS
from edgetune.validate.rounds import plan_rounds
from edgetune.validate.worker import open_worker

TRACES = Path(__file__).parent / "data" / "latency_traces.json"
# The most of the processors' time that others may take.
SORTS = {"idle": 0.06, "busy": 0.40, "overloaded": 10.0}
# As between the blocks of the measurement: thread pools spin for a moment.
SETTLE_S = 0.05


def record_session(
    job: Mapping[str, Any], rounds: int, most: int
) -> tuple[list[list[float]], float]:
    """(blocks of answers in ms, in the order A B B A A B B A …, whole rounds; the share of the
    processors' time that all other processes took meanwhile). A block has as many answers as the
    measurement would plan now, at most `most`."""
    blocks: list[list[float]] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(open_worker([CANDIDATE_MODULE])) for _ in range(2)]
        for worker in workers:
            worker.ask(job, 600)
            times = worker.ask({"run": 4}, 600)["answer_ms"][1:]
        repeats = min(most, *plan_rounds([sum(times) / 3e3] * 2)[1])
        before = _busy_s(), _busy_s(worker.pid for worker in workers), time.monotonic()
        for _ in range(rounds):
            for side in (0, 1, 1, 0):
                time.sleep(SETTLE_S)
                times = workers[side].ask({"run": repeats}, 600)["answer_ms"]
                blocks.append([round(ms, 2) for ms in times])
        own = _busy_s(worker.pid for worker in workers) - before[1]
        wall = (time.monotonic() - before[2]) * (os.cpu_count() or 1)
        return blocks, max(0.0, _busy_s() - before[0] - own) / wall


def share_now(seconds: float = 3.0) -> float:
    """The share of the processors' time that is in use."""
    before = _busy_s()
    time.sleep(seconds)
    return (_busy_s() - before) / seconds / (os.cpu_count() or 1)


def sort_of(share: float) -> str:
    """What a machine is called of which others take so much."""
    return next(name for name, most in SORTS.items() if share <= most)


def _busy_s(pids: Iterable[int] | None = None) -> float:
    """Processor seconds used since the start, of these processes or of the whole machine."""
    if pids is None:
        times = psutil.cpu_times()
        return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))
    spent = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(times.user + times.system for times in spent))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--sessions", type=int, default=10, help="of each sort")
    parser.add_argument("--rounds", type=int, default=24, help="of a session")
    parser.add_argument("--minutes", type=float, default=20.0, help="when to give up")
    parser.add_argument("--most", type=int, default=3, help="answers a block")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--out", type=Path, default=TRACES)
    options = parser.parse_args()
    manifest = read_manifest(options.package)
    variant = choose_variant(manifest, None, None).name
    job = {
        "package": str(options.package),
        "variant": variant,
        "threads": options.threads,
        "prompt_ids": [50 + n % 100 for n in range(PROMPT_TOKENS)],
        "new_tokens": NEW_TOKENS,
    }
    host = probe_host()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SORTS}
    until = time.monotonic() + 60 * options.minutes
    while time.monotonic() < until:
        if all(len(sessions) >= options.sessions for sessions in found.values()):
            break
        if len(found[sort_of(share_now())]) >= options.sessions:
            continue
        blocks, share = record_session(job, options.rounds, options.most)
        name = sort_of(share)
        text = f"{len(blocks)} blocks of {len(blocks[0])}, others {share:.1%}: {name}"
        print(text, file=sys.stderr, flush=True)
        if len(found[name]) < options.sessions:
            found[name].append({"others_cpu_share": round(share, 3), "blocks": blocks})
        _write(
            options.out,
            {
                "what": f"{manifest.name}, {variant}, {PROMPT_TOKENS} + {NEW_TOKENS} tokens",
                "threads": options.threads,
                "cpu": host.cpu_model,
                "cores": host.cores,
                "sorts": SORTS,
            },
            found,
        )


def _write(path: Path, head: Mapping[str, Any], found: Mapping[str, list[Any]]) -> None:
    """One session a line."""
    lines = [f"{json.dumps(dict(head))[:-1]},", '"sessions": {']
    groups = [
        f'"{name}": [\n' + ",\n".join(json.dumps(s) for s in sessions) + "]"
        for name, sessions in found.items()
    ]
    path.parent.mkdir(exist_ok=True)
    text = "\n".join([*lines, ",\n".join(groups), "}}"])
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
