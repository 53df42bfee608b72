"""How fast, and in how much memory, an adapter is merged; PEFT's own merge is the peer.

    python tools/bench_merge.py                         # against PEFT, 0.5 billion parameters
    python tools/bench_merge.py --alone --shape phi-3-mini   # 3.8 billion, ours alone

Random weights of real shapes (`tools/shapes.py`). The peer loads the model in its own type, merges
and saves; ours also reads and digests all inputs, calculates in float32 and stores float32.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from paired import compare, table


def peer(base: str, adapter: str, out: str, dtype: str) -> None:
    """Merge as PEFT's documentation shows it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--alone", action="store_true", help="no peer: for what it cannot hold")
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(*options.peer)
    kind = "dora" if options.dora else "lora"
    base, adapter = options.work / options.shape, options.work / f"{options.shape}-{kind}"
    make = [sys.executable, str(Path(__file__).parent / "shapes.py"), options.shape]
    import subprocess

    subprocess.run([*make, str(base), str(adapter), kind], check=True)
    outs = {name: options.work / f"merge-{name}" for name in ("edgetune", "peft", "peft-f32")}
    commands = {
        "edgetune": [
            sys.executable, "-m", "edgetune", "build", "-m", str(base), "-a", str(adapter),
            "-o", str(outs["edgetune"]), "--until", "merge",
        ],
        **{
            name: [
                sys.executable, __file__, "--peer", str(base), str(adapter), str(outs[name]), dtype,
            ]
            for name, dtype in (("peft", "bfloat16"), ("peft-f32", "float32"))
        },
    }  # fmt: skip
    if options.alone:
        commands = {"edgetune": commands["edgetune"]}
    runs = compare(commands, options.rounds, outs)
    size = sum(f.stat().st_size for f in base.glob("*.safetensors"))
    print(f"{options.shape}, {kind}, base {size / 1e9:.2f} GB, {options.rounds} rounds\n")
    print(table(runs, "edgetune" if options.alone else "peft"))
    for out in outs.values():
        shutil.rmtree(out, ignore_errors=True)
    return None


if __name__ == "__main__":
    main()
