"""docs/ci.md: its workflow parses, its commands do what it says, its pytest example runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from edgetune.cli import edgetune
from edgetune.report.regression import Margins
from edgetune.report.schema import load_report
from tests.report.compared import put, whole
from tests.report.test_gate_bad_input import make_package

pytestmark = pytest.mark.line

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def steps() -> list[dict[str, Any]]:
    (text,) = blocks("yaml")
    workflow = YAML(typ="safe").load(text)
    assert set(workflow) == {"name", "on", "jobs"}
    (job,) = workflow["jobs"].values()
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    found: list[dict[str, Any]] = job["steps"]
    return found


def script(name: str) -> str:
    return next(str(step["run"]) for step in steps() if step.get("name") == name)


def run_script(
    text: str, folder: Path, command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a step as the runner does, `edgetune` being `command`."""
    program = folder / "bin" / "edgetune"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{command}\n")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_and_option_in_it_exists() -> None:
    shell = "\n".join([*blocks("bash"), *(str(step.get("run", "")) for step in steps())])
    commands = re.findall(r"edgetune (\w+)((?:[^\n]|\\\n)*)", shell)
    assert {name for name, _ in commands} == {"gate", "build"}
    for name, rest in commands:
        command = edgetune.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest)) <= known
    gate, build = (
        {option for parameter in edgetune.commands[name].params for option in parameter.opts}
        for name in ("gate", "build")
    )
    named = set(re.findall(r"`(--[a-z-]+)", TEXT)) - {"--json"}
    assert named - {"--thorough"} <= gate
    assert "--thorough" in build
    assert {option for option in gate if option.startswith("--max")} <= named


def test_the_margins_told_are_the_margins_used() -> None:
    rows = re.findall(r"\| ([\d.]+) \| `--max-([a-z-]+)` \|", TEXT)
    margins = Margins()
    assert {name: float(value) for value, name in rows} == {
        "drop": margins.drop,
        "kl-rise": margins.kl_rise,
        "slowdown": margins.slowdown,
        "growth": margins.growth,
    }


@pytest.mark.parametrize(("code", "goes_on"), [(0, True), (1, True), (5, True), (4, False)])
def test_the_build_step_goes_on_to_the_gate_only_with_a_package(
    tmp_path: Path, code: int, goes_on: bool
) -> None:
    done = run_script(script("Build"), tmp_path, f"exit {code}")
    assert (done.returncode == 0) == goes_on


def test_the_gate_step_gates_alone_first_and_then_against_the_baseline(tmp_path: Path) -> None:
    package = make_package(tmp_path / "out" / "demo")
    summary = tmp_path / "summary.md"
    edgetune_here = f'exec {sys.executable} -m edgetune "$@"'
    first = run_script(script("Gate"), tmp_path, edgetune_here, GITHUB_STEP_SUMMARY=str(summary))
    assert (first.returncode, first.stderr.count("gate.xml")) == (0, 1)
    assert "::notice title=demo@this-machine::pass" in first.stdout
    run_script(script("The next baseline"), tmp_path, "exit 9")
    report = package / "reports" / "r.json"
    inputs = load_report(report).inputs
    digest = load_report(report).package_digest
    put(report, whole(kl=0.03, inputs=inputs, package_digest=digest))
    second = run_script(script("Gate"), tmp_path, edgetune_here, GITHUB_STEP_SUMMARY=str(summary))
    assert second.returncode == 1
    assert "::error title=demo@this-machine%3A kl_mean_regression::KL from" in second.stdout
    assert summary.read_text().count("edgetune gate\n") == 2


def test_the_pytest_example_passes_and_fails_with_the_checks(tmp_path: Path) -> None:
    (text,) = blocks("python")
    put(tmp_path / "test_package.py", text)
    put(tmp_path / "out" / "demo" / "r.json", whole(wrong=range(60)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_package.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "test_check[exact_match_drop]" in done.stdout
