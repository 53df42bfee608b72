"""Build recipes in several schemes and show how much of each fine-tune survives, as one table.

    python tools/show_schemes.py                       # the demo's recipes, minutes
    python tools/show_schemes.py smollm2-lora smollm2-dora smollm2-qlora

Every row is a build through the command, its figures come from the report it wrote. Steps that a
store already holds are not built again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEMO = ("demo", "demo-dora", "demo-qlora")
SCHEMES = ("fp32", "w8a16-rtn", "w4a16-rtn")
COLUMNS = (
    "adapter", "scheme", "package, MB", "KL, nats", "top-1", "retention",
    "exact match: base / trained / package", "time to answer", "verdict",
)  # fmt: skip


def build(recipe: str, scheme: str, device: str, out: Path) -> Mapping[str, Any]:
    """The report of one build. Raises RuntimeError when the build itself failed."""
    command = [sys.executable, "-m", "edgetune", "build", recipe, "--scheme", scheme]
    command += ["-d", device, "-o", str(out), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1, 5):
        msg = f"{recipe} {scheme}: exit code {done.returncode}"
        raise RuntimeError(msg)
    entry = json.loads(done.stdout)["builds"][0]
    report: Mapping[str, Any] = json.loads(Path(entry["report"]).read_text(encoding="utf-8"))
    return report


def row(recipe: str, scheme: str, report: Mapping[str, Any]) -> list[str]:
    """The cells of one build."""
    fidelity, size = report["fidelity"], report["size"]
    match = report["task_metrics"].get("exact_match")
    shares = "not measured"
    if match is not None:
        base = "none" if match["base"] is None else f"{100 * match['base']:.1f}"
        change = f"{100 * match['difference']:+.1f}"
        bounds = f"[{100 * match['low']:+.1f}, {100 * match['high']:+.1f}]"
        shares = f"{base} / {100 * match['reference']:.1f} / {100 * match['candidate']:.1f} %"
        shares += f" ({change} {bounds}, n = {match['n']})"
    ratio = report["latency"]["ratio"]
    return [
        recipe,
        scheme,
        f"{size['package_bytes'] / 1e6:.1f}",
        interval(fidelity["kl_mean"], "{:.2g}"),
        interval(fidelity["top1_agreement"], "{:.4f}"),
        interval(fidelity["retention"], "{:.4f}"),
        shares,
        "not measured" if ratio is None else "× " + interval(ratio, "{:.2f}"),
        report["verdict"],
    ]


def interval(figure: Mapping[str, float] | None, form: str) -> str:
    """`value [low, high]`."""
    if figure is None:
        return "not measured"
    value, low, high = (form.format(figure[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=DEMO)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("-d", "--device", default="this-machine")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for recipe in options.recipes:
        for scheme in options.schemes:
            cells = row(recipe, scheme, build(recipe, scheme, options.device, options.out))
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
