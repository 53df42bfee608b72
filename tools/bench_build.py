"""Base and adapter to a quantized graph: ours, and the same by hand (PEFT merge, then
onnxruntime-genai's builder).

    python tools/bench_build.py --scheme w4a16-rtn-g128
    python tools/bench_build.py --scheme w8a16-rtn

Random weights of real shapes (`tools/shapes.py`). Ours is the whole command with `--until
optimize`: inputs digested, graph read back and opened. What the optimize step alone took is read
from its record.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from paired import compare, table


def peer(base: str, adapter: str, out: str, precision: str, group_size: str) -> None:
    """PEFT's merge, then the builder on what it saved, as their documentation shows it."""
    import torch
    from onnxruntime_genai.models.builder import create_model, parse_extra_options
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = f"{out}/merged"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)
    del model
    words = [f"block_size={group_size}", "accuracy_level=4", "prune_lm_head=true"]
    graph, cache = f"{out}/graph", f"{out}/cache"
    parsed = parse_extra_options(merged, merged, graph, precision, "cpu", cache, words)
    create_model(merged, merged, graph, precision, "cpu", cache, **parsed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--scheme", default="w4a16-rtn-g128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    parser.add_argument("--alone", action="store_true", help="no peer: for what it cannot hold")
    parser.add_argument("--peer", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(*options.peer)
    base, adapter = options.work / options.shape, options.work / f"{options.shape}-lora"
    make = [sys.executable, str(Path(__file__).parent / "shapes.py"), options.shape]
    subprocess.run([*make, str(base), str(adapter), "lora"], check=True)
    name, _, group_size = options.scheme.partition("-g")
    precision = {"w4a16-rtn": "int4", "w8a16-rtn": "int8"}[name]
    outs = {side: options.work / f"build-{side}" for side in ("edgetune", "by hand")}
    commands = {
        "edgetune": [
            sys.executable, "-m", "edgetune", "build", "-m", str(base), "-a", str(adapter),
            "-o", str(outs["edgetune"]), "--until", "optimize", "--scheme", options.scheme,
        ],
        "by hand": [
            sys.executable, __file__, "--peer", str(base), str(adapter), str(outs["by hand"]),
            precision, group_size or "32",
        ],
    }  # fmt: skip
    if options.alone:
        del commands["by hand"]
    runs = compare(commands, options.rounds, outs)
    print(f"{options.shape}, {options.scheme}, {options.rounds} rounds\n")
    print(table(runs, "edgetune" if options.alone else "by hand"))
    record = next(outs["edgetune"].glob("steps/optimize-*/step.json"))
    step = json.loads(record.read_text(encoding="utf-8"))
    print(
        f"\noptimize step: {step['seconds']:.1f} s, peak {step['peak_rss_mb']:.0f} MB; "
        f"the process that opened the graph {step['facts']['open_peak_rss_mb']:.0f} MB"
    )
    for side, found in {
        "edgetune": record.parent,
        "by hand": outs["by hand"] / "graph",
    }.items():
        if found.is_dir():
            size = sum(f.stat().st_size for f in found.rglob("model.onnx*"))
            print(f"{side}: graph {size / 1e6:.0f} MB")
    for out in outs.values():
        shutil.rmtree(out, ignore_errors=True)
    return None


if __name__ == "__main__":
    main()
