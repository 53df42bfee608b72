"""Rows on disk: any order in, any block out, readable by numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune.reference import rows as module
from edgetune.reference.rows import RowFile


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    with RowFile(tmp_path / "rows.npy", 7, 5) as rows:
        rows.write(3, values[3:])
        rows.write(0, values[:3])
        assert np.array_equal(rows.read(2, 4), values[2:6])
        rows.write(1, -values[1:2])
    assert np.array_equal(np.load(tmp_path / "rows.npy")[1], -values[1])
    assert np.load(tmp_path / "rows.npy").flags.c_contiguous


def test_blocks_cover_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES_AT_ONCE", 3 * 5 * 4)
    with RowFile(tmp_path / "rows.npy", 7, 5) as rows:
        assert list(rows.blocks()) == [(0, 3), (3, 3), (6, 1)]


def test_reading_past_the_end_is_an_error(tmp_path: Path) -> None:
    with RowFile(tmp_path / "rows.npy", 2, 3) as rows, pytest.raises(EOFError, match="row 3"):
        rows.read(1, 2)
