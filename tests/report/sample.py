"""A report in which everything was measured and passes; tests change parts of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from edgetune.report.make import finish_report
from edgetune.report.schema import Report, parse_report


def interval(value: float, width: float = 0.0) -> dict[str, float]:
    """value ± width."""
    return {"value": value, "low": value - width, "high": value + width}


def _side(answer_ms: float) -> dict[str, Any]:
    return {
        "load_s": 0.5,
        "ttft_ms": answer_ms / 4,
        "decode_tokens_per_s": 64_000 / answer_ms,
        "prefill_tokens_per_s": 512_000 / answer_ms,
        "answer_ms": answer_ms,
        "peak_rss_mb": 300.0,
        "dtype": "float32",
        "intervals": {"ttft_ms": interval(answer_ms / 4, 1.0)},
    }


def _check(name: str, limit: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "limit": limit, "required": False, "reason": None, **more}


SECTIONS: Mapping[str, Any] = {
    "identifier": "demo@this-machine",
    "device": "this-machine",
    "variant": "cpu-w8a16-rtn",
    "package_digest": "0123456789abcdef" * 4,
    "checks": [
        _check("retention", 0.95),
        _check("kl_mean", 0.05),
        _check("exact_match_drop", 0.02),
        _check("tokenizer_parity", 0.0),
        _check("finite_outputs", 0.0),
        _check("time_to_answer_ratio", 1.0),
    ],
    "fidelity": {
        "perplexity_ratio": interval(1.001, 0.001),
        "kl_mean": interval(0.004, 0.001),
        "kl_p99": interval(0.03, 0.01),
        "top1_agreement": interval(0.98, 0.005),
        "retention": interval(0.99, 0.005),
        "kl_base": interval(1.09, 0.1),
        "kl_kind": "whole vocabulary",
        "items": 240,
        "positions": 3600,
        "non_finite_positions": 0,
        "flips": {"answers": 240, "changed": 3, "lost": 1, "gained": 0},
        "reasons": {},
        "measured_on": "x86_64 host abc",
    },
    "task_metrics": {
        "exact_match": {
            "base": 0.1,
            "reference": 0.95,
            "candidate": 0.946,
            "difference": -0.004,
            "low": -0.018,
            "high": 0.007,
            "n": 240,
        },
        "answer_logprob": {
            "base": -3.0,
            "reference": -0.05,
            "candidate": -0.06,
            "difference": -0.01,
            "low": -0.02,
            "high": 0.0,
            "n": 240,
        },
    },
    "latency": {
        "reference": _side(800.0),
        "candidate": _side(200.0),
        "ratio": interval(0.25, 0.02),
        "reason": None,
        "prompt_tokens": 128,
        "new_tokens": 64,
    },
    "size": {"base_bytes": 10_000_000, "package_bytes": 6_000_000, "graph_bytes": 5_000_000},
    "providers": {"requested": ["CPUExecutionProvider"], "used": ["CPUExecutionProvider"],
                  "coverage": 1.0, "reason": None},
    "tokenizer": {"cases": 300, "mismatches": 0, "skipped": 0, "differences": []},
    "merge": {"parity_max_abs": 1e-6, "tensors_used": 8, "tensors_total": 8, "onto": None},
    "evidence": {"built": True, "opened": True, "executed": True, "on_device": True},
    "environment": {"fingerprint": "abc", "threads": 2, "versions": {"numpy": "2.4.6"}},
    "steps": [],
    "inputs": {"recipe": "r", "self_test": "s"},
    "examples": [
        {"id": "7", "prompt": "p", "expected": "yes", "reference": "yes", "package": "no",
         "lost": True, "kl_mean": 0.5},
    ],
}  # fmt: skip


def sections(**changes: Any) -> dict[str, Any]:
    """The sections; `changes` are keys with `__` for nesting, such as fidelity__kl_mean."""
    value = copy.deepcopy(dict(SECTIONS))
    for path, new in changes.items():
        *parents, last = path.split("__")
        place = value
        for key in parents:
            place = place[key]
        place[last] = new
    return value


def make(**changes: Any) -> dict[str, Any]:
    """A finished report's JSON value."""
    return finish_report(sections(**changes))


def make_report(**changes: Any) -> Report:
    """A finished report."""
    return parse_report(make(**changes))
