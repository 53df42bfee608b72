"""Energy from counters as Linux's powercap shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.validate import energy


def _zone(root: Path, zone: str, name: str, count: int) -> Path:
    folder = root / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{count}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    return folder


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_the_packages_are_summed_and_nothing_else(powercap: Path) -> None:
    _zone(powercap, "intel-rapl:0", "package-0", 1_000_000)
    _zone(powercap, "intel-rapl:1", "package-1", 5_000_000)
    _zone(powercap, "intel-rapl:0:0", "core", 0)
    _zone(powercap, "intel-rapl:2", "psys", 0)
    before = energy.read_energy()
    _zone(powercap, "intel-rapl:0", "package-0", 3_500_000)
    _zone(powercap, "intel-rapl:1", "package-1", 5_500_000)
    _zone(powercap, "intel-rapl:0:0", "core", 9_000_000)
    assert energy.joules_since(before) == pytest.approx(3.0)


def test_a_counter_that_went_round_is_seen(powercap: Path) -> None:
    _zone(powercap, "intel-rapl:0", "package-0", 999_000_000)
    before = energy.read_energy()
    _zone(powercap, "intel-rapl:0", "package-0", 1_000_000)
    assert energy.joules_since(before) == pytest.approx(2.0)


def test_without_counters_energy_is_not_known(powercap: Path) -> None:
    assert energy.read_energy() is None
    assert energy.joules_since(None) is None
    assert energy.why_no_energy().startswith("the machine has no energy counter")
    (_zone(powercap, "intel-rapl:0", "package-0", 1) / "energy_uj").write_text("")
    assert energy.read_energy() is None
    assert "cannot be read" in energy.why_no_energy()
