"""Take a tiny model of every base family through the line, and write what came out to
docs/models.md: `python tools/show_families.py` (minutes), or `--check` to write nothing.

Weights are random, so the divergences of int8 and int4 compare families, and are no quality figure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgetune.checkpoint.families import REFUSED, SUPPORTED  # noqa: E402
from edgetune.child import run_child  # noqa: E402
from tests.families import FAMILIES, build_family  # noqa: E402
from tests.merge.merged import merge, parity  # noqa: E402
from tests.tiny import make_adapter  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- written by tools/show_families.py -->", "<!-- end -->"
SCHEMES = ("fp32", "w8a16-rtn", "w4a16-rtn")
LIMIT = 1e-4
REFUSALS = "Refused by name (exit 4), before anything is built:"


@dataclass(frozen=True)
class Row:
    """What was measured for one family."""

    name: str
    merge: tuple[float, float]
    graphs: Mapping[str, Mapping[str, Any]]

    @property
    def misses(self) -> list[str]:
        """Which bounds it misses."""
        found = []
        if self.merge[0] > LIMIT * max(1.0, self.merge[1]):
            found.append("merge")
        for scheme, facts in self.graphs.items():
            if "error" in facts:
                found.append(f"{scheme}: {facts['error']}")
            elif not facts["answer"]:
                found.append(f"{scheme}: no answer")
        exact = self.graphs["fp32"]
        if "error" not in exact:
            if exact["difference"] > LIMIT * max(1.0, exact["largest"]):
                found.append("fp32: logits")
            if exact["answer"] != exact["expected"]:
                found.append("fp32: answer")
        return found


def measure(folder: Path) -> list[Row]:
    """Merge a LoRA into every family's tiny base, build the result in every scheme, measure."""
    merges: dict[str, tuple[float, float]] = {}
    jobs: list[dict[str, Any]] = []
    for name, tiny in FAMILIES.items():
        print(f"merge  {name}", file=sys.stderr)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            base = build_family(folder / name / "base", name)
            targets = list(tiny.targets)
            adapter = make_adapter(base, folder=folder / name / "lora", target_modules=targets)
            merge(folder / name / "merged", base, [adapter])
            difference, largest, _ = parity(folder / name / "merged", base, [adapter])
        merges[name] = (difference, largest)
        for scheme in SCHEMES:
            checkpoint = str(folder / name / "merged")
            long = tiny.long if scheme == "fp32" else 0
            jobs.append({"checkpoint": checkpoint, "scheme": scheme, "long": long})
    out = folder / "graphs"
    out.mkdir()
    print(f"build  {len(jobs)} graphs", file=sys.stderr)
    facts, _ = run_child(
        "tests.optimize.builds:build_families",
        {"jobs": jobs},
        out,
        log=folder / "log",
        progress=lambda _: None,
    )
    found = iter(facts[str(number)] for number in range(len(jobs)))
    return [
        Row(name, merges[name], {scheme: next(found) for scheme in SCHEMES}) for name in FAMILIES
    ]


def page_part(rows: list[Row]) -> str:
    """The Markdown between the page's two marks: what was measured, and what is refused."""
    columns = (
        "family",
        "`model_type`",
        "tiny model",
        "merge",
        "fp32 package",
        "KL int8",
        "KL int4",
    )
    lines = [f"| {' | '.join(columns)} | generates |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        tiny = FAMILIES[row.name]
        exact, eight, four = (row.graphs[scheme] for scheme in SCHEMES)
        limits = [LIMIT * max(1.0, value) for value in (row.merge[1], exact["largest"])]
        cells = [
            *(tiny.stands_for, f"`{tiny.model_type}`", row.name),
            f"{row.merge[0]:.1e} / {limits[0]:.1e}",
            f"{exact['difference']:.1e} / {limits[1]:.1e}",
            *(f"{eight['kl_mean']:.1e}", f"{four['kl_mean']:.1e}"),
            "no" if row.misses else "yes",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    tools = ("onnxruntime-genai", "onnxruntime", "transformers", "peft", "torch")
    versions = ", ".join(f"{tool} {version(tool)}" for tool in tools)
    refused = [f"- `{name}`: {why}." for name, why in sorted(REFUSED.items())]
    return "\n".join(["", *lines, "", f"Measured with {versions}.", "", REFUSALS, "", *refused, ""])


def main() -> int:
    """Measure, and write the page's table; 1 when a family misses a bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    assert {tiny.model_type for tiny in FAMILIES.values()} == set(SUPPORTED)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    missed = {row.name: row.misses for row in rows if row.misses}
    for name, misses in missed.items():
        print(f"{name}: {'; '.join(misses)}", file=sys.stderr)
    if missed:
        return 1
    text = page_part(rows)
    print(text)
    if not arguments.check:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
