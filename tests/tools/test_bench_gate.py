"""The simulation with few runs: it uses the gate's own functions, and can tell a gate that errs."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune import paired_times
from edgetune.statistics import Interval
from tools import bench_gate

pytestmark = pytest.mark.line

RUNS = 8


def _sessions(noise: float) -> list[bench_gate.Session]:
    generator = np.random.default_rng(3)
    level = np.exp(np.cumsum(generator.normal(0, 0.02, size=(4, 60, 1, 1)), axis=1))
    return list(30 * level * np.exp(generator.normal(0, noise, size=(4, 60, 4, 3))))


def _rows(noise: float) -> dict[str, tuple[str, ...]]:
    rows = bench_gate.latency_rows({"drifting": _sessions(noise)}, RUNS, lambda _: None)
    return {row[1]: row[2:5] for row in rows}


def test_small_noise_passes_what_is_equal_and_fails_what_is_slower() -> None:
    rows = _rows(0.02)
    assert rows["A/A"][0] == "100.0%"
    assert rows["+10%"][2] == "100.0%"
    assert rows["+5%"][0] != "100.0%"


def test_large_noise_is_inconclusive() -> None:
    rows = _rows(0.8)
    assert float(rows["A/A"][1].rstrip("%")) > 50
    assert float(rows["+10%"][1].rstrip("%")) > 50


def test_bounds_that_are_too_narrow_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = paired_times.ratio_of_medians

    def narrow(below: object, above: object, launches: object) -> Interval:
        value = real(below, above).value  # type: ignore[arg-type]
        return Interval(value, value, value)

    monkeypatch.setattr(paired_times, "ratio_of_medians", narrow)
    (row, *_) = bench_gate.latency_rows({"noisy": _sessions(0.8)}, RUNS, lambda _: None)
    assert float(row[6].rstrip("%")) > 20


def test_the_shipped_traces_are_whole_rounds_of_positive_times() -> None:
    head, traces = bench_gate.load_traces()
    assert head["what"].endswith("tokens")
    assert traces
    for sessions in traces.values():
        for session in sessions:
            assert session.shape[1] == 4
            assert session.min() > 0
        assert 0 <= bench_gate.process_spread(sessions)[0] < 0.2
    assert bench_gate.TRACES.stat().st_size < 200_000


def test_accuracy_rows_are_right_at_the_n_they_state() -> None:
    for margin, truth, _flips, _n, passed, _, failed in bench_gate.accuracy_rows(300):
        shares = float(passed.rstrip("%")), float(failed.rstrip("%"))
        if truth == "A/A":
            assert shares[0] > 85
            assert shares[1] < 5
        elif truth == f"−{margin}":
            assert max(shares) < 9
        else:
            assert shares[1] > 85
