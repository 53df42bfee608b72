"""The page on adapters says what the code refuses, and its table has every kind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.adapter_kinds import KINDS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "adapters.md"


def test_refusals_are_those_of_the_code() -> None:
    tool = ROOT / "tools" / "show_parity.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_kind_is_in_the_table_within_the_limit() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.M)
    cells = {name: found for name, *found in rows}
    assert set(KINDS) <= cells.keys()
    for name in KINDS:
        for cell in cells[name]:
            parity, effect = re.fullmatch(r"(\S+) \((\S+)\)", cell).groups()  # type: ignore[union-attr]
            assert float(parity) <= 5e-5, name
            assert float(effect) > 0.3, name
