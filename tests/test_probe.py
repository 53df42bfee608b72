"""Measured speeds, and the profile that carries them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from edgetune import probe
from edgetune.device import load_device, this_machine
from edgetune.host import probe_host
from edgetune.probe import measure_bandwidth, measure_int8, measure_speeds, probed_yaml


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_LEAST_BYTES", 8_000_000)
    monkeypatch.setattr(probe, "_MOST_BYTES", 8_000_000)
    monkeypatch.setattr(probe, "_READ_S", 0.05)
    monkeypatch.setattr(probe, "_PRODUCT_S", 0.05)
    monkeypatch.setattr(probe, "_PRODUCT", (16, 256, 256))


def test_speeds_are_measured_and_say_how(tmp_path: Path) -> None:
    device, speeds = this_machine(probe_host()), measure_speeds(2)
    assert not speeds.reasons
    assert speeds.bandwidth is not None
    assert 0.2 < speeds.bandwidth.value < 5000
    assert "2 threads read 8 MB" in speeds.bandwidth.source
    path = tmp_path / "my-box.yaml"
    path.write_text(probed_yaml(device, "my-box", speeds), encoding="utf-8")
    again = load_device(path)
    assert again.memory_bandwidth_gb_s == speeds.bandwidth
    assert again.int8_gops == speeds.int8
    assert again.int8_gops is not None
    assert again.int8_gops.status == "measured"


def test_bytes_and_seconds_make_the_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_together", lambda jobs: [job() for job in jobs] and 0.004)
    assert measure_bandwidth(4).value == pytest.approx(2.0)


def test_operations_and_seconds_make_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    from itertools import count

    clock = count()
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(clock) * 0.02)
    assert measure_int8(1).value == pytest.approx(round(2 * 16 * 256 * 256 / 0.02 / 1e9, 1))


def test_without_onnx_the_speed_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "onnx":
            raise ImportError(name, name="onnx")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    speeds = measure_speeds(1)
    assert speeds.int8 is None
    assert speeds.reasons == {"int8_gops": "onnx is not installed here"}
    text = probed_yaml(this_machine(probe_host()), "my-box", speeds)
    assert "# int8_gops: not measured: onnx is not installed here" in text


def test_too_little_memory_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "available_memory_bytes", lambda: 1_000_000)
    speeds = measure_speeds(1)
    assert speeds.bandwidth is None
    assert "too little memory" in speeds.reasons["memory_bandwidth_gb_s"]


def test_a_profile_without_speeds_says_nothing_of_them() -> None:
    text = probed_yaml(this_machine(probe_host()), "my-box")
    assert "bandwidth" not in text
