"""What must stay true of the whole: what loads, what imports what, what the wheel holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "olive",
    "onnx",
    "onnxruntime",
    "onnxruntime_genai",
    "numpy",
    "pydantic",
    "rich",
}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["build", "--help"], ["gate", "--help"], ["--version"]]
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edgetune", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {row.rsplit("|", 1)[-1].strip() for row in done.stderr.splitlines() if "|" in row}
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("edgetune.build", {"torch", "transformers", "peft", "olive", "onnx", "numpy"}),
        ("edgetune.optimize.workflow", {"torch", "onnx", "olive", "numpy"}),
        ("edgetune.report.verdict", {"torch", "onnx", "olive", "numpy"}),
        ("edgetune.validate.validate", {"torch", "transformers", "peft", "olive", "onnx"}),
        ("edgetune.runtime.session", {"torch", "transformers", "peft", "olive", "onnx"}),
        ("edgetune.inspect", {"torch", "transformers", "peft", "olive", "onnx"}),
    ],
)
def test_modules_load_nothing_they_must_not(module: str, banned: set[str]) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {banned!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_project_speaks_of_itself_alone() -> None:
    words = ("/roo" + "t/", "/wor" + "k/", "pypi" + ".", "python" + "hosted")
    for folder in ("edgetune", "recipes", "devices", "tools", "docs", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".md", ".json", ".jsonl", ".jinja"):
                text = path.read_text(encoding="utf-8")
                assert not [w for w in words if w in text], path
