"""ABBA rounds: planned, run in two processes, and honest about what could not be measured."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgetune.errors import InputRefusedError
from edgetune.runtime.session import OpenPackage
from edgetune.validate import cold_load, latency, latency_figures, rounds
from edgetune.validate.latency import make_prompt, measure_latency
from edgetune.validate.latency_worker import count_tokens, measure, serve
from edgetune.validate.rounds import FEWEST_ROUNDS, TIMES
from tests.tiny_package import VARIANT

pytestmark = pytest.mark.line


def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BLOCK_S", 0.005)
    monkeypatch.setattr(rounds, "ROUNDS", FEWEST_ROUNDS)
    monkeypatch.setattr(rounds, "MOST_LAUNCHES", 1)
    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)


def _job(package: Path, **changes: Any) -> dict[str, Any]:
    prompt = [50 + n % 100 for n in range(128)]
    job = {"package": str(package), "variant": VARIANT, "threads": 1, "prompt_ids": prompt}
    return {**job, "prompt_tokens": 128, "new_tokens": 16, **changes}


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
    assert len(side["rounds_ms"]) == 3
    assert side["token_ms"]["p50"] <= side["token_ms"]["p95"] <= side["token_ms"]["p99"]
    assert side["token_ms"]["p50"] < side["answer_ms"]
    assert side["cost"]["cpu_s_per_1k_tokens"] > 0
    assert (side["load_cold_s"] is None) == ("load_cold_s" in side["reasons"])
    assert side["sustained"] is None


def test_a_thorough_measurement_has_a_sustained_minute(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    monkeypatch.setattr(latency_figures, "WINDOW_S", 0.05)
    side = measure_latency(_job(package), None, lambda _: None, thorough=True)["candidate"]
    speeds = side["sustained"]["tokens_per_s"]
    assert len(speeds) == 6
    assert max(speeds) > 0
    share = speeds[-1] / speeds[0] if speeds[0] else None
    assert side["sustained"]["last_to_first"] == share


def _on_disk(folder: Path) -> bool:
    kinds = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
    mounts = [m for m in kinds if folder.resolve().is_relative_to(m)]
    return kinds[max(mounts, key=len)] not in ("tmpfs", "ramfs")


def test_files_that_stay_in_memory_give_no_cold_load(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_load, "share_in_memory", lambda path: 0.1)
    job = _job(package)
    found, why = cold_load.load_cold(latency.CANDIDATE_MODULE, job, package / VARIANT, 0.1)
    assert found is None
    assert why is not None
    assert why.startswith("the page cache still holds")
    found, why = cold_load.load_cold(latency.CANDIDATE_MODULE, job, package / VARIANT, 61.0)
    assert (found, why) == (None, "loading takes 61 s already from memory")


def test_a_file_that_was_read_is_in_memory_until_it_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(1 << 20))
    with (tmp_path / "weights").open("rb") as file:
        os.fsync(file.fileno())
    (tmp_path / "weights").read_bytes()
    assert cold_load.share_in_memory(tmp_path / "weights") == 1
    why = cold_load.drop_from_memory(tmp_path)
    # A file system that lives in memory keeps what it has.
    assert why == (None if _on_disk(tmp_path) else "the page cache still holds weights")


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


def test_the_worker_speaks_json_lines(package: Path) -> None:
    lines = [_job(package, new_tokens=4), {"run": 2}, {"stop": True}, {"run": 1}]
    sink = io.StringIO()
    serve(io.StringIO("".join(json.dumps(line) + "\n" for line in lines)), sink)
    ready, answer = (json.loads(line) for line in sink.getvalue().splitlines())
    assert ready["ready"] is True
    assert ready["load_s"] > 0
    assert {len(answer[key]) for key in TIMES} == {2}
    assert len(answer["token_ms"]) == 2 * 3
    assert answer["cpu_s"] > 0


def test_no_token_ends_a_timed_answer(opened: OpenPackage) -> None:
    found = measure(opened, [50, 60], 30, 1)
    assert found["answer_ms"][0] >= 29 * 0.2 * found["decode_ms_per_token"][0]
    assert found["peak_rss_mb"] is None or found["peak_rss_mb"] > 1


def test_tokens_are_counted_in_windows_of_time(opened: OpenPackage) -> None:
    counts = count_tokens(opened, [50, 60], 5, {"windows": 3, "window_s": 0.1})
    assert len(counts) == 3
    assert sum(counts) >= 1
