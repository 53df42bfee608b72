"""The cost section: counts from the package, costs out of the latency section, reasons."""

from __future__ import annotations

from typing import Any

from edgetune.validate.cost import cost_section


def _side(reason: str | None) -> dict[str, Any]:
    joules = None if reason else 2.0
    own = {"cpu_s_per_1k_tokens": 0.5, "joules_per_1k_tokens": joules, "reason": reason}
    return {"answer_ms": 1.0, "cost": own}


def test_a_build_knows_everything() -> None:
    latency: dict[str, Any] = {"reference": _side(None), "candidate": _side(None), "reason": None}
    found = cost_section({"parameters": {"trained": 10, "total": 1000}}, latency, 77)
    assert found["reasons"] == {}
    assert (found["trained_parameters"], found["total_parameters"]) == (10, 1000)
    assert found["package_bytes"] == 77
    assert found["candidate"] == {"cpu_s_per_1k_tokens": 0.5, "joules_per_1k_tokens": 2.0}
    assert "cost" not in latency["candidate"]


def test_what_is_not_known_has_a_reason() -> None:
    side = _side("the machine has no energy counter")
    latency: dict[str, Any] = {"reference": None, "candidate": side, "reason": "no torch"}
    found = cost_section({}, latency, 77)
    assert found["trained_parameters"] is found["total_parameters"] is found["reference"] is None
    assert set(found["reasons"]) == {
        "trained_parameters", "total_parameters", "reference", "joules_per_1k_tokens"
    }  # fmt: skip
    latency = {"reference": None, "candidate": None, "reason": "this host is not a pi"}
    found = cost_section({}, latency, 77)
    assert found["candidate"] is None
    assert found["reasons"]["candidate"] == "this host is not a pi"
