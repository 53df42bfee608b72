"""Prefill and decode of genai folders, and of llama.cpp, in turn on one machine.

    python tools/bench_decode.py ours=OUT/demo/cpu-w8a16-rtn builder=FOLDER
    python tools/bench_decode.py a=FOLDER b=FOLDER,threads=1 --gguf q4=model.gguf --llama-bench PATH

Each folder is opened once by a process of its own and answers in blocks, one side busy at a time,
the order reversed in every second round. Ratios are to the first side, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from paired import spread


def serve(folder: str, threads: int, prompt: int, new: int, settings: str) -> None:
    """Open a genai folder; for each line on stdin answer once and print the times."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(folder)
    options = {"intra_op_num_threads": threads, **json.loads(settings)}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    tokens = np.random.default_rng(0).integers(5, 900, (1, prompt)).astype(np.int32)
    print("ready", flush=True)
    for _ in sys.stdin:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=prompt + new + 1, min_length=prompt + new)
        generator = og.Generator(model, parameters)
        started = time.perf_counter()
        generator.append_tokens(tokens)
        generator.generate_next_token()
        first = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(new - 1):
            generator.generate_next_token()
        rest = time.perf_counter() - started
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
        print(json.dumps([prompt / first, (new - 1) / rest, peak]), flush=True)


class Side:
    """A folder that is open in a process of its own."""

    def __init__(self, name: str, where: str, options: argparse.Namespace) -> None:
        folder, *pairs = where.split(",")
        extra = dict(pair.split("=", 1) for pair in pairs)
        threads = extra.pop("threads", str(options.threads))
        settings = json.dumps(extra)
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", folder, threads, str(options.prompt),
             str(options.new), settings],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.rows: list[list[float]] = []
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            sys.exit(f"{name}: {folder} does not open")

    def answer(self) -> list[float]:
        """[prefill tokens/s, decode tokens/s, peak MB] of one answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        row: list[float] = json.loads(self.process.stdout.readline())
        return row


class Llama:
    """llama.cpp's own benchmark of a GGUF file."""

    def __init__(self, name: str, file: str, options: argparse.Namespace) -> None:
        self.name, self.file, self.options = name, file, options
        self.rows: list[list[float]] = []

    def answer(self) -> list[float]:
        """[prefill tokens/s, decode tokens/s, nothing] of one run."""
        o = self.options
        command = [o.llama_bench, "-m", self.file, "-t", str(o.threads), "-p", str(o.prompt)]
        command += ["-n", str(o.new), "-r", "1", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        prefill = next(r["avg_ts"] for r in found if r["n_prompt"])
        decode = next(r["avg_ts"] for r in found if r["n_gen"])
        return [prefill, decode, float("nan")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sides", nargs="*", metavar="NAME=FOLDER[,threads=N][,setting=value]")
    parser.add_argument("--gguf", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--llama-bench", metavar="PATH")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        folder, threads, prompt, new, settings = options.serve
        return serve(folder, int(threads), int(prompt), int(new), settings)
    sides: list[Any] = [Side(*_named(text), options) for text in options.sides]
    sides += [Llama(*_named(text), options) for text in options.gguf]
    for side in sides:
        side.answer()  # warms up
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            time.sleep(0.1)  # thread pools spin for a moment after their work
            side.rows.append(side.answer())
    print(f"{options.prompt} + {options.new} tokens, {options.threads} threads\n")
    print(
        "| side | prefill tokens/s | decode tokens/s | peak MB | prefill ÷ first | decode ÷ first |"
    )
    print("|---|---|---|---|---|---|")
    for side in sides:
        prefill, decode, peak = (list(column) for column in zip(*side.rows, strict=True))
        ratios = [
            spread([a[k] / b[k] for a, b in zip(side.rows, sides[0].rows, strict=True)], ".2f")
            for k in (0, 1)
        ]
        cells = [side.name, spread(prefill, ".0f"), spread(decode, ".1f"), f"{max(peak):.0f}"]
        print(f"| {' | '.join([*cells, *ratios])} |")
    return None


def _named(text: str) -> tuple[str, str]:
    name, _, where = text.partition("=")
    return name, where


if __name__ == "__main__":
    main()
