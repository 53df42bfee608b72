"""ABBA rounds: planned, run in two processes, and honest about what could not be measured."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.runtime.session import OpenPackage
from edgetune.validate import latency
from edgetune.validate.latency import (
    FEWEST_ROUNDS,
    ROUNDS,
    Side,
    make_prompt,
    measure_latency,
    plan_rounds,
)
from edgetune.validate.latency_worker import measure, serve
from tests.tiny_package import VARIANT


def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "BLOCK_S", 0.005)
    monkeypatch.setattr(latency, "ROUNDS", FEWEST_ROUNDS)
    monkeypatch.setattr(latency, "_SETTLE_S", 0.0)


def _job(package: Path, **changes: Any) -> dict[str, Any]:
    prompt = [50 + n % 100 for n in range(128)]
    job = {"package": str(package), "variant": VARIANT, "threads": 1, "prompt_ids": prompt}
    return {**job, "prompt_tokens": 128, "new_tokens": 16, **changes}


@pytest.mark.parametrize(
    ("seconds", "rounds", "repeats"),
    [
        ([0.1, 0.02], 6, [5, 25]),
        ([0.4, 0.3], 6, [3, 3]),
        # 3 answers of 2 s and 0.4 s a block would take 87 s: one each.
        ([2.0, 0.4], 6, [1, 1]),
        # Too slow for six rounds.
        ([3.0, 0.5], 4, [1, 1]),
        ([60.0, 60.0], 3, [1, 1]),
        ([0.1], 6, [5]),
    ],
)
def test_rounds_fit_the_time_there_is(
    seconds: list[float], rounds: int, repeats: list[int]
) -> None:
    assert plan_rounds(seconds) == (rounds, repeats)


def test_the_prompt_is_the_tasks_own_text_cut_to_what_the_model_takes() -> None:
    ids, new = make_prompt([[1, 2], [3]], 4096)
    assert (len(ids), ids[:5], new) == (128, [1, 2, 3, 1, 2], 64)
    ids, new = make_prompt([list(range(500))], 4096)
    assert ids == list(range(128))
    ids, new = make_prompt([[1]], 100)
    assert len(ids) + new <= 100
    ids, new = make_prompt([[1]], 2)
    assert (len(ids), new) == (1, 1)


def test_the_package_alone_is_measured_without_a_reference(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    found = measure_latency(_job(package), None, lambda _: None)
    side = found["candidate"]
    for name in ("load_s", "ttft_ms", "decode_tokens_per_s", "prefill_tokens_per_s", "answer_ms"):
        assert side[name] > 0, name
    assert side["answer_ms"] > side["ttft_ms"]
    assert side["intervals"]["ttft_ms"]["low"] <= side["ttft_ms"]
    assert side["intervals"]["decode_tokens_per_s"]["low"] <= side["decode_tokens_per_s"]
    assert found["reference"] is found["ratio"] is None
    assert "the merged checkpoint is not here" in found["reason"]
    assert (found["rounds"], found["prompt_tokens"], found["new_tokens"]) == (3, 128, 16)


def test_two_equal_sides_have_a_ratio_near_one(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    monkeypatch.setattr(latency, "REFERENCE_MODULE", latency.CANDIDATE_MODULE)
    found = measure_latency(_job(package), _job(package), lambda _: None)
    ratio = found["ratio"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert 0.2 < ratio["value"] < 5
    assert found["reason"] is None


def test_a_reference_that_does_not_load_leaves_nulls_with_the_reason(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _quick(monkeypatch)
    monkeypatch.setattr(latency, "REFERENCE_MODULE", latency.CANDIDATE_MODULE)
    found = measure_latency(_job(package), _job(tmp_path), lambda _: None)
    assert found["reference"] is found["ratio"] is None
    assert found["reason"].startswith("torch cannot run the merged checkpoint here:")
    assert "not a package" in found["reason"]
    assert found["candidate"] is not None


def test_a_reference_too_large_for_the_memory_is_not_measured(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    job = {**_job(package), "dtype_candidates": []}
    found = measure_latency(_job(package), job, lambda _: None)
    assert found["reference"] is found["ratio"] is None
    assert found["reason"] == "the unconverted model does not fit this machine's memory"
    assert found["candidate"] is not None


def test_without_torch_there_is_no_reference(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    monkeypatch.setattr(latency, "find_spec", lambda name: None)
    found = measure_latency(_job(package), _job(package), lambda _: None)
    assert (found["ratio"], found["reason"]) == (None, "torch is not installed here")


def test_a_package_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="not a package"):
        measure_latency(_job(tmp_path), None, lambda _: None)


class FakeWorker:
    """A side whose answers take a fixed time; the log tells the order of blocks."""

    module = "fake"

    def __init__(self, name: str, log: list[str], milliseconds: float) -> None:
        self.name, self.log, self.milliseconds = name, log, milliseconds

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        self.log.append(self.name)
        times = [self.milliseconds] * message["run"]
        keys = ("ttft_ms", "decode_ms_per_token", "prefill_tokens_per_s", "answer_ms")
        return {**dict.fromkeys(keys, times), "peak_rss_mb": 1.0}


def test_blocks_go_a_b_b_a(monkeypatch: pytest.MonkeyPatch) -> None:
    _quick(monkeypatch)
    log: list[str] = []
    sides = [Side(FakeWorker(n, log, t), {}) for n, t in (("A", 20.0), ("B", 10.0))]  # type: ignore[arg-type]
    assert latency._run_rounds(sides, 2, [1, 2], lambda _: None) == 2
    assert "".join(log) == "ABBAABBA"
    assert sides[1].rounds["answer_ms"] == [[10.0] * 4] * 2
    assert latency._ratio(*sides) == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_a_machine_that_got_slower_stops_after_the_fewest_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _quick(monkeypatch)
    monkeypatch.setattr(latency, "BUDGET_S", -1.0)
    side = Side(FakeWorker("A", [], 1.0), {})  # type: ignore[arg-type]
    assert latency._run_rounds([side], ROUNDS, [1], lambda _: None) == FEWEST_ROUNDS


def test_an_answer_with_too_few_times_is_an_error() -> None:
    worker = SimpleNamespace(module="fake", ask=lambda message, timeout: {"answer_ms": [1.0]})
    with pytest.raises(StepFailedError, match="an answer without 2 times"):
        Side(worker, {}).run(2)  # type: ignore[arg-type]


def test_the_worker_speaks_json_lines(package: Path) -> None:
    lines = [_job(package, new_tokens=4), {"run": 2}, {"stop": True}, {"run": 1}]
    sink = io.StringIO()
    serve(io.StringIO("".join(json.dumps(line) + "\n" for line in lines)), sink)
    ready, answer = (json.loads(line) for line in sink.getvalue().splitlines())
    assert ready["ready"] is True
    assert ready["load_s"] > 0
    assert {len(answer[key]) for key in latency._TIMES} == {2}


def test_no_token_ends_a_timed_answer(opened: OpenPackage) -> None:
    found = measure(opened, [50, 60], 30, 1)
    assert found["answer_ms"][0] >= 29 * 0.2 * found["decode_ms_per_token"][0]
    assert found["peak_rss_mb"] is None or found["peak_rss_mb"] > 1
