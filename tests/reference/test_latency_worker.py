"""The reference's half of the latency measurement: lengths, data types, and the protocol."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import UsageError
from edgetune.reference import latency_worker
from edgetune.reference.latency_worker import (
    cycle_prompt,
    fit_lengths,
    load_faster,
    run_repeats,
    serve,
)

pytestmark = pytest.mark.line

WORKER = [sys.executable, "-m", "edgetune.reference.latency_worker"]
TIMES = {
    "ttft_ms", "decode_ms_per_token", "prefill_tokens_per_s", "decode_tokens_per_s", "answer_ms",
}  # fmt: skip


def start_of(checkpoint: Path, **changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint),
        "threads": 1,
        "dtype_candidates": ["bfloat16", "float32"],
        "prompt_tokens": 128,
        "new_tokens": 8,
        "prompt_ids": [5, 6, 7],
        **changes,
    }


def test_lengths_are_cut_to_the_context_and_say_so() -> None:
    assert fit_lengths(128, 64, None) == fit_lengths(128, 64, 192)
    assert fit_lengths(128, 64, 192).note is None
    cut = fit_lengths(128, 64, 160)
    assert (cut.prompt_tokens, cut.new_tokens) == (96, 64)
    assert cut.note == "the model takes 160 tokens: measured with 96 + 64"
    short = fit_lengths(128, 64, 32)
    assert (short.prompt_tokens, short.new_tokens) == (16, 16)


def test_a_prompt_is_repeated_or_cut() -> None:
    assert cycle_prompt([1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]
    assert cycle_prompt([1, 2, 3], 2) == [1, 2]
    with pytest.raises(UsageError, match="no prompt_ids"):
        cycle_prompt([], 3)


def test_a_run_gives_one_value_a_repeat(merged: Path) -> None:
    model = latency_worker._load(merged, "float32")[0]
    found = run_repeats(model, [5, 6, 7], 4, 3)
    assert found.pop("cpu_s") > 0
    assert len(found.pop("token_ms")) == 3 * 3
    assert set(found) == TIMES
    assert all(len(values) == 3 and min(values) > 0 for values in found.values())
    for n in range(3):
        assert found["answer_ms"][n] > found["ttft_ms"][n]
        assert found["prefill_tokens_per_s"][n] == pytest.approx(3000 / found["ttft_ms"][n])
    assert run_repeats(model, [5], 1, 2)["decode_ms_per_token"] == []


@pytest.mark.parametrize("fast", ["bfloat16", "float32"])
def test_the_faster_data_type_is_kept(
    merged: Path, monkeypatch: pytest.MonkeyPatch, fast: str
) -> None:
    def estimate(model: Any, prompt: Any, new_tokens: int) -> float:
        return 1.0 if str(model.dtype) == f"torch.{fast}" else 2.0

    monkeypatch.setattr(latency_worker, "_estimate_ms", estimate)
    loaded = load_faster(merged, ["bfloat16", "float32"], [5], 4)
    assert loaded.dtype == fast
    assert str(loaded.model.dtype) == f"torch.{fast}"
    assert loaded.trials == {fast: 1.0, ({"bfloat16", "float32"} - {fast}).pop(): 2.0}
    assert loaded.load_s > 0


def test_an_unknown_data_type_is_refused(merged: Path) -> None:
    with pytest.raises(UsageError, match="unknown data type 'int3'"):
        load_faster(merged, ["int3"], [5], 4)


def test_a_peak_that_covers_more_than_the_model_is_not_told(
    merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_worker, "_reset_peak_rss", lambda: False)
    answers = io.StringIO()
    serve(io.StringIO(json.dumps(start_of(merged)) + "\n"), answers)
    assert json.loads(answers.getvalue())["peak_rss_mb"] is None
    one = start_of(merged, dtype_candidates=["float32"])
    answers = io.StringIO()
    serve(io.StringIO(json.dumps(one) + "\n"), answers)
    assert json.loads(answers.getvalue())["peak_rss_mb"] > 0


@pytest.mark.line
def test_the_protocol(merged: Path) -> None:
    requests = [start_of(merged, prompt_tokens=280), {"run": 2}, {"run": 1}, {"stop": True}]
    text = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(
        WORKER, input=text, capture_output=True, text=True, check=True, env=parented()
    )
    ready, first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready["ready"] is True
    assert ready["dtype"] in ("bfloat16", "float32")
    assert ready["load_s"] > 0
    assert ready["peak_rss_mb"] > 50
    assert (ready["prompt_tokens"], ready["new_tokens"]) == (248, 8)
    assert ready["note"].startswith("the model takes 256 tokens")
    assert set(first) == {*TIMES, "token_ms", "cpu_s", "peak_rss_mb"}
    assert (len(first["ttft_ms"]), len(second["ttft_ms"])) == (2, 1)


@pytest.mark.line
def test_a_failure_is_an_answer(tmp_path: Path) -> None:
    text = json.dumps(start_of(tmp_path)) + "\n"
    done = subprocess.run(
        WORKER, input=text, capture_output=True, text=True, check=False, env=parented()
    )
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert "config.json: no such file" in error["message"]
    assert set(error) == {"exit_code", "message", "hint"}
    done = subprocess.run(
        WORKER, input="{}\n", capture_output=True, text=True, check=False, env=parented()
    )
    assert done.returncode == 6
    assert "KeyError" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.line
def test_it_does_not_outlive_who_started_it() -> None:
    done = subprocess.run(
        WORKER, input="", capture_output=True, check=False, env=parented(os.getpid() + 1)
    )
    assert done.returncode == 1
    assert done.stdout == b""


def parented(pid: int | None = None) -> dict[str, str]:
    return {**os.environ, "EDGETUNE_PARENT": str(pid or os.getpid())}
