"""Records how long the same answers take, one after another, on this machine: the noise that
`tools/bench_gate.py` simulates with.

    python tools/record_latency_traces.py OUT/demo idle --sessions 8 --seconds 40 --others 0.05
    python tools/record_latency_traces.py OUT/demo busy --sessions 8 --seconds 40

A session is two fresh processes that open the same package and answer in A B B A blocks, as the
latency measurement does; whatever differs between the two is noise. With `--others` a session is
kept only when all other processes together took less than that share of the processors' time: what
makes a trace idle is how the machine was, never how the times came out. The trace is added to
tools/data/latency_traces.json, in the place of one with the same label.
"""

from __future__ import annotations

import argparse
import json
import math
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
from edgetune.validate.worker import open_worker

TRACES = Path(__file__).parent / "data" / "latency_traces.json"
# As between the blocks of the measurement: thread pools spin for a moment.
SETTLE_S = 0.05


def record_session(
    job: Mapping[str, Any], seconds: float, repeats: int
) -> tuple[list[list[float]], float]:
    """(blocks of `repeats` answers in ms, in the order A B B A A B B A …, whole rounds; the share
    of the processors' time that all other processes took meanwhile)."""
    blocks: list[list[float]] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(open_worker([CANDIDATE_MODULE])) for _ in range(2)]
        for worker in workers:
            worker.ask(job, 600)
            worker.ask({"run": 3}, 600)
        until = time.monotonic() + seconds
        before = _busy_s(), _busy_s(worker.pid for worker in workers), time.monotonic()
        while time.monotonic() < until:
            for side in (0, 1, 1, 0):
                time.sleep(SETTLE_S)
                times = workers[side].ask({"run": repeats}, 600)["answer_ms"]
                blocks.append([round(ms, 3) for ms in times])
        own = _busy_s(worker.pid for worker in workers) - before[1]
        wall = (time.monotonic() - before[2]) * (os.cpu_count() or 1)
        return blocks, max(0.0, _busy_s() - before[0] - own) / wall


def wait_for_quiet(others: float) -> None:
    """Until all processes together took less than this share of the processors for 4 s."""
    while True:
        before = _busy_s()
        time.sleep(4)
        if _busy_s() - before < others * 4 * (os.cpu_count() or 1):
            return


def _busy_s(pids: Iterable[int] | None = None) -> float:
    """Processor seconds used since the start, of these processes or of the whole machine."""
    if pids is None:
        times = psutil.cpu_times()
        return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))
    spent = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(times.user + times.system for times in spent))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("label")
    parser.add_argument("--sessions", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--others", type=float, default=math.inf, help="most CPU share of others")
    parser.add_argument("--repeats", type=int, default=1, help="answers a block")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--out", type=Path, default=TRACES)
    options = parser.parse_args()
    manifest = read_manifest(options.package)
    job = {
        "package": str(options.package),
        "variant": choose_variant(manifest, None, None).name,
        "threads": options.threads,
        "prompt_ids": [50 + n % 100 for n in range(PROMPT_TOKENS)],
        "new_tokens": NEW_TOKENS,
    }
    sessions: list[list[list[float]]] = []
    shares: list[float] = []
    dropped = 0
    while len(sessions) < options.sessions:
        wait_for_quiet(options.others)
        blocks, share = record_session(job, options.seconds, options.repeats)
        kept = share < options.others
        note(f"{len(blocks)} blocks, others {share:.1%}, kept: {kept}")
        if kept:
            sessions.append(blocks)
            shares.append(round(share, 4))
        else:
            dropped += 1
    host = probe_host()
    trace = {
        "label": options.label,
        "what": f"{manifest.name}, {job['variant']}, {PROMPT_TOKENS} + {NEW_TOKENS} tokens",
        "threads": options.threads,
        "cpu": host.cpu_model,
        "cores": host.cores,
        "others_cpu_shares": shares,
        "others_cpu_limit": options.others if math.isfinite(options.others) else None,
        "sessions_dropped": dropped,
        "sessions": sessions,
    }
    old = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    rows = [json.dumps(t) for t in [*(t for t in old if t["label"] != options.label), trace]]
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
