"""The self-test: right on a machine that can tell, honest on one that cannot, and able to fail."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from edgetune.statistics import Interval
from edgetune.validate import gate_self_test, rounds
from edgetune.validate.gate_self_test import measure_ratio, overall, self_test_gate
from edgetune.validate.rounds import TIMES
from edgetune.validate.workload_worker import calibrate, serve


def _measured(monkeypatch: pytest.MonkeyPatch, half: float, slower: float = 1.1) -> dict[str, Any]:
    """The self-test where measurements give the truth, or `slower` for the slower, ± half."""

    def ratio(slowdown: float, progress: object) -> Interval:
        value = 1.0 if slowdown == 1 else slower
        return Interval(value, value - half, value + half)

    monkeypatch.setattr(gate_self_test, "measure_ratio", ratio)
    return self_test_gate(lambda _: None)


def test_on_a_quiet_machine_all_is_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _measured(monkeypatch, 0.01)
    assert found["verdict"] == "pass"
    verdicts = [(check["expected"], check["verdict"]) for check in found["checks"]]
    assert verdicts[:4] == [("pass", "pass"), ("fail", "fail")] * 2
    assert {expected for expected, _ in verdicts[4:]} == {"no pass"}
    assert "pass" not in [verdict for _, verdict in verdicts[4:]]
    json.dumps(found, allow_nan=False)


def test_a_noisy_machine_is_inconclusive_never_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _measured(monkeypatch, 0.2)
    assert found["verdict"] == "inconclusive"
    assert [check["as_expected"] for check in found["checks"]][:2] == [False, False]


def test_a_gate_that_misses_a_slowdown_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _measured(monkeypatch, 0.01, slower=1.0)["verdict"] == "fail"


def test_a_gate_that_passes_everything_fails_its_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate_self_test, "decide", lambda *_: "pass")
    found = _measured(monkeypatch, 0.01)
    assert found["verdict"] == "fail"
    wrong = [check["name"] for check in found["checks"] if not check["as_expected"]]
    assert "NaN in place of a ratio" in wrong
    assert len(wrong) == 3


def test_wrong_outweighs_unclear() -> None:
    unclear = {"verdict": "inconclusive", "as_expected": False}
    assert overall([unclear, {"verdict": "pass", "as_expected": False}]) == "fail"
    assert overall([unclear, {"verdict": "pass", "as_expected": True}]) == "inconclusive"


def test_a_workload_of_twice_the_size_takes_about_twice_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "ROUNDS", 4)
    monkeypatch.setattr(rounds, "MOST_LAUNCHES", 2)
    monkeypatch.setattr(rounds, "BLOCK_S", 0.01)
    monkeypatch.setattr(gate_self_test, "ANSWER_MS", 4.0)
    found = measure_ratio(2.0, lambda _: None)
    assert 1.0 < found.value < 4.0


def test_the_workload_speaks_as_the_other_workers_do() -> None:
    lines = [{"units": 100}, {"run": 2}, {"stop": True}, {"run": 1}]
    sink = io.StringIO()
    serve(io.StringIO("".join(json.dumps(line) + "\n" for line in lines)), sink)
    ready, answer = (json.loads(line) for line in sink.getvalue().splitlines())
    assert (ready["ready"], ready["units"]) == (True, 100)
    assert {len(answer[key]) for key in TIMES} == {2}
    assert len(answer["token_ms"]) == 2 * 9
    units = calibrate(lambda units: None, 0.01)
    assert units % 100 == 0
    assert units > 0
