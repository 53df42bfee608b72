"""Modules run one by one: figures with bounds, the worst first, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import StepFailedError
from edgetune.validate import survival
from edgetune.validate.survival import run_modules

FILES = {"checkpoint": Path("c"), "graph": Path("g"), "reference": Path("r")}


def section(*names: str, reason: str | None = None) -> dict[str, Any]:
    row = {"values": 4, "delta_relative": 0.1, "step": 0.1, "below_step": 1.0, "snr": 0.5}
    return {"modules": [{"name": n, **row} for n in names], "not_found": [], "reason": reason}


class Worker:
    """Answers as the torch child does."""

    def __init__(self, kl: Mapping[str, Any], base_kl: Any) -> None:
        self.kl, self.base_kl, self.heard = kl, base_kl, []

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        self.heard.append(message)
        if "module" in message:
            return {"kl": self.kl[message["module"]]}
        return {"ready": True, "items": 2, "positions": [4, 6], "base_kl": self.base_kl}


def run(
    monkeypatch: pytest.MonkeyPatch, kl: Mapping[str, Any], base_kl: Any = (3.0, 7.0)
) -> dict[str, Any]:
    worker = Worker(kl, base_kl)

    @contextmanager
    def opened(command: Any) -> Iterator[Worker]:
        assert command == ["edgetune.reference.survival_worker"]
        yield worker

    monkeypatch.setattr(survival, "open_worker", opened)
    found = run_modules(section(*kl), FILES, 2, lambda _: None)
    assert worker.heard[0] == {
        "checkpoint": "c", "graph": "g", "reference": "r", "modules": len(kl), "threads": 2,
    }  # fmt: skip
    return found


def test_the_one_that_costs_most_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, {"a": [0.1, 0.1], "b": [1.0, 4.0], "c": None})
    assert [row["name"] for row in found["modules"]] == ["b", "a", "c"]
    worst, _, unknown = found["modules"]
    assert worst["kl_mean"]["value"] == pytest.approx(0.5)
    assert worst["retention"]["value"] == pytest.approx(0.5)
    assert worst["retention"]["low"] <= 0.5 <= worst["retention"]["high"]
    assert unknown["kl_mean"] is unknown["retention"] is None
    assert (found["items"], found["not_run"]) == (2, None)
    assert worst["snr"] == 0.5


def test_without_a_base_there_is_no_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    for base_kl in (None, [0.0, 0.0]):
        (row,) = run(monkeypatch, {"a": [0.1, 0.1]}, base_kl)["modules"]
        assert row["retention"] is None
        assert row["kl_mean"]["value"] == pytest.approx(0.02)


def test_what_cannot_be_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def broken(command: Any) -> Iterator[Worker]:
        raise StepFailedError("it ran out of memory")
        yield

    monkeypatch.setattr(survival, "open_worker", broken)
    found = run_modules(section("a"), FILES, 1, lambda _: None)
    assert found["not_run"] == "torch cannot run the modules here: it ran out of memory"
    assert found["modules"] == section("a")["modules"]
    monkeypatch.setattr(survival, "find_spec", lambda name: None)
    assert run_modules(section("a"), FILES, 1, lambda _: None)["not_run"] == (
        "torch is not installed here"
    )
    found = run_modules(section(reason="nothing is quantized"), FILES, 1, lambda _: None)
    assert found["not_run"] == "nothing is quantized"
