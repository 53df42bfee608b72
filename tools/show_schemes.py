"""Build recipes in several schemes and show how much of each fine-tune survives, as one table.

    python tools/show_schemes.py                       # the demo's recipes, minutes
    python tools/show_schemes.py smollm2-lora smollm2-dora smollm2-qlora --schemes w4a16-rtn

Every row is a build through the command, its figures come from the report it wrote. Steps that a
store already holds are not built again. A scheme that the plan refuses has its sentence as a row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.optimize.schemes import SCHEMES

DEMO = ("demo", "demo-dora", "demo-qlora")
COLUMNS = (
    "adapter", "scheme", "graph, MB", "KL, nats", "top-1", "retention",
    "exact match: base / trained / package", "prefill, tokens/s", "decode, tokens/s",
    "time to answer", "verdict",
)  # fmt: skip


class RefusedError(Exception):
    """What the plan said of a scheme that it does not build."""


def build(recipe: str, scheme: str, device: str, out: Path) -> Mapping[str, Any]:
    """The report of one build. Raises RefusedError when the plan refused the scheme, RuntimeError
    when the build itself failed."""
    command = [sys.executable, "-m", "edgetune", "build", recipe, "--scheme", scheme]
    command += ["-d", device, "-o", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode == 2:
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise RefusedError(said[0].removeprefix("error: ") if said else "no reason given")
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
    ratio, side = report["latency"]["ratio"], report["latency"]["candidate"]
    return [
        recipe,
        scheme,
        f"{size['graph_bytes'] / 1e6:.2f}",
        interval(fidelity["kl_mean"], "{:.2g}"),
        interval(fidelity["top1_agreement"], "{:.4f}"),
        interval(fidelity["retention"], "{:.4f}"),
        shares,
        *(speed(side, key) for key in ("prefill_tokens_per_s", "decode_tokens_per_s")),
        "not measured" if ratio is None else "× " + interval(ratio, "{:.2f}"),
        report["verdict"],
    ]


def speed(side: Mapping[str, Any] | None, key: str) -> str:
    """`value [low, high]` of a side's latency; the value alone where it has no interval."""
    if side is None:
        return "not measured"
    bounds = side["intervals"].get(key)
    return f"{side[key]:.0f}" if bounds is None else interval(bounds, "{:.0f}")


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
            try:
                cells = row(recipe, scheme, build(recipe, scheme, options.device, options.out))
            except RefusedError as why:
                cells = [recipe, scheme, f"refused: {why}", *[""] * (len(COLUMNS) - 3)]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
