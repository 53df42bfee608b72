"""Whole builds, once a session: the demo's output folder, and how to run the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# For builds of which the latency is not asked.
ELSEWHERE = ("-d", str(Path(__file__).parent / "elsewhere.yaml"))
Edgetune = Callable[..., subprocess.CompletedProcess[str]]


def edgetune(
    *arguments: str | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 900,
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgetune", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **(environment or {})},
        timeout=timeout,
        check=False,
    )


def build_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The first build of `build --json`."""
    entry: dict[str, Any] = json.loads(done.stdout)["builds"][0]
    return entry


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The report of the first build of `build --json`."""
    report: dict[str, Any] = json.loads(Path(build_of(done)["report"]).read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `edgetune build demo -d generic-x86-64`; nobody may change it."""
    out = tmp_path_factory.mktemp("demo") / "out"
    done = edgetune("build", "demo", "-d", "generic-x86-64", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    return out
