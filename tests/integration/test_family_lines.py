"""Every family through the command: a LoRA on a tiny base, merged, built, packed and validated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.families import FAMILIES, build_family
from tests.integration.conftest import ELSEWHERE, edgetune, report_of
from tests.tiny import make_adapter

pytestmark = pytest.mark.slow

# One of each family; their variants (other positions, windows) are proved graph by graph in
# tests/optimize/test_family_graphs.py.
ONE_OF_EACH = (
    "smollm2", "phi3-medium-128k", "phi4-mini", "qwen2", "qwen3", "mistral", "gemma2", "gemma3",
    "granite", "olmo", "smollm3",
)  # fmt: skip


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_whole_line(name: str, tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", name)
    targets = list(FAMILIES[name].targets)
    adapter = make_adapter(base, folder=tmp_path / "adapter", target_modules=targets)
    rows = [{"prompt": f"{n} is ", "completion": "the other in there"} for n in range(6)]
    if FAMILIES[name].long:
        # the answer begins before the model's positions change, and ends after
        rows.append({"prompt": "xy " * 1362, "completion": "zz yy xx zz yy xx ww vv uu"})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = edgetune(
        *("build", "-m", base, "-a", adapter, *ELSEWHERE, "--data", data),
        *("--scheme", "fp32", "-o", tmp_path / "out", "--json"),
    )
    # 5: so few items prove little
    assert done.returncode in (0, 5), done.stderr
    report: dict[str, Any] = report_of(done)
    assert report["merge"]["parity_max_abs"] <= report["merge"]["parity_limit"]
    fidelity = report["fidelity"]
    assert fidelity["kl_mean"]["value"] < 1e-6
    assert fidelity["kl_base"]["value"] > 0.01
    assert fidelity["top1_agreement"]["value"] == 1
    assert report["tokenizer"]["mismatches"] == 0
    # Past the windows and where positions change, as far as the context goes.
    changes = bool(FAMILIES[name].long or FAMILIES[name].config.get("sliding_window"))
    assert (report["long_context"] is not None) == changes
    for stretch in (report["long_context"] or {"stretches": []})["stretches"]:
        assert stretch["kl_mean"]["value"] < 1e-6
