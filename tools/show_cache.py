"""What a long context costs with each kind of key-value cache, as a table.

    edgetune build smollm2-lora --scheme w8a16-rtn -o out
    edgetune build smollm2-lora --scheme w8a16-rtn --kv-cache int8 -o out8
    python tools/show_cache.py out/smollm2-lora out8/smollm2-lora --tokens 4096

Each row is a process of its own: it opens the variant, takes a prompt of that many tokens, then
generates. Memory is the peak of the process less what it held after a prompt of 16 tokens; figures
are medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = (
    "variant",
    "prompt",
    "memory of the context, MB",
    "prefill, tokens/s",
    "decode, tokens/s",
)
_SHORT, _NEW = 16, 32


def measure(folder: Path, tokens: int) -> dict[str, float]:
    """One run in this process."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(str(folder))

    def run(length: int, new: int) -> tuple[float, float]:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=length + new + 1)
        generator = og.Generator(model, parameters)
        ids = 5 + np.arange(length, dtype=np.int32) * 7 % 200
        start = time.perf_counter()
        generator.append_tokens(ids[None])
        generator.get_logits()
        middle = time.perf_counter()
        for number in range(new):
            generator.append_tokens(np.array([[5 + number]], dtype=np.int32))
        generator.get_logits()
        return middle - start, time.perf_counter() - middle

    run(_SHORT, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prefill, decode = run(tokens, _NEW)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "memory": (peak - before) * 1024 / 1e6,
        "prefill": tokens / prefill,
        "decode": _NEW / decode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.packages[0], options.tokens)))
        return
    folders = [file.parent for p in options.packages for file in p.rglob("genai_config.json")]
    rows: dict[Path, list[dict[str, float]]] = {folder: [] for folder in folders}
    for _ in range(options.runs):
        for folder in folders:
            command = [sys.executable, __file__, str(folder), "--one"]
            command += ["--tokens", str(options.tokens)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows[folder].append(json.loads(done.stdout))
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for folder, runs in rows.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        cells = (folder.name, str(options.tokens), *(f"{middle[key]:.0f}" for key in middle))
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
