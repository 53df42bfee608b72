"""A report with every section filled in: what the page is tried on, fast and in a browser."""

from __future__ import annotations

from typing import Any

from edgetune.report.schema import Report, parse_report
from tests.report.compared import whole
from tests.report.sample import interval

KINDS = (("self_attn.qkv_proj", 49152), ("self_attn.o_proj", 16384), ("mlp.down_proj", 65536))
LAYERS = 6
DIGEST = "ab" * 32
EXAMPLES = [
    {"id": "17", "prompt": "please turn on the lamp in the kitchen at eight", "lost": True,
     "expected": "set lamp kitchen on 08:00", "reference": "set lamp kitchen on 08:00",
     "package": "set lamp bedroom off", "kl_mean": 0.73},
    {"id": "3", "prompt": "is it raining?", "expected": None, "lost": False, "kl_mean": 0.21,
     "reference": "weather now", "package": "weather now rain"},
]  # fmt: skip


def full(alone: bool = True, **changes: Any) -> dict[str, Any]:
    """Sections as `compared.whole` takes them; `alone`: with each module's own KL."""
    return whole(**{**_more(alone), **changes})


def full_report(alone: bool = True, **changes: Any) -> Report:
    """The finished report."""
    return parse_report(full(alone, **changes))


def failing(**changes: Any) -> dict[str, Any]:
    """One that lost its fine-tune."""
    lost: dict[str, Any] = {
        "wrong": range(130),
        "kl": 1.4,
        "checks": [
            {"name": "retention", "limit": 0.95},
            {"name": "kl_mean", "limit": 0.05},
            {"name": "exact_match_drop", "limit": 0.02},
            {"name": "tokenizer_parity", "limit": 0.0},
            {"name": "time_to_answer_ratio", "limit": 1.0},
            {"name": "ttft_ms", "limit": 100.0},
        ],
        "fidelity__retention": interval(-0.28, 0.03),
        "examples": EXAMPLES,
        "latency": {"reference": None, "candidate": None, "ratio": None,
                    "reason": "this host is not a raspberry-pi-5"},
        "device": "raspberry-pi-5",
        "identifier": "demo-erased@raspberry-pi-5",
        "variant": "cpu-w4a16-rtn",
    }  # fmt: skip
    more = {**_more(False), **lost, **changes}
    # Its times are gone, and whole() would fill them in.
    latency = more.pop("latency")
    return whole(**more, latency=latency)


def _more(alone: bool) -> dict[str, Any]:
    return {
        "survival": _survival(alone),
        "weights": _weights(),
        "fidelity__kl_by_position": [
            {"first": first, "last": last, "positions": 240 * (last - first + 1),
             "kl": interval(0.002 + 0.0006 * n, 0.0004)}
            for n, (first, last) in enumerate(((1, 1), (2, 2), (3, 3), (4, 4), (5, 8), (9, 15)))
        ],
        "latency__candidate__token_ms": {
            "p5": 0.8, "p25": 0.9, "p50": 1.0, "p75": 1.1, "p95": 1.4, "p99": 2.25},
        "latency__reference__token_ms": {
            "p5": 3.5, "p25": 3.8, "p50": 4.0, "p75": 4.4, "p95": 5.0, "p99": 6.5},
        "provenance": _provenance(),
        "steps": [{"name": "merge", "seconds": 9.36, "peak_rss_mb": 412.6, "cached": False},
                  {"name": "validate", "seconds": 31.5, "peak_rss_mb": None, "cached": True}],
        "sampling": {"seed": 0, "resamples": 2000, "text_seed": None},
        "examples": EXAMPLES,
    }  # fmt: skip


def _survival(alone: bool) -> dict[str, Any]:
    modules = [
        {
            "name": f"model.layers.{layer}.{kind}",
            "values": values,
            "delta_relative": 0.05 + 0.01 * layer,
            "step": 0.0025,
            "below_step": 0.15,
            "snr": 0.6 + 1.1 * layer + number,
            "kl_mean": interval(0.0004 * (LAYERS - layer + number), 0.0001) if alone else None,
            "retention": interval(0.99, 0.002) if alone else None,
        }
        for layer in range(LAYERS)
        for number, (kind, values) in enumerate(KINDS)
    ]
    return {
        "modules": modules,
        "not_found": ["model.layers.0.mlp.gate"],
        "reason": None,
        "not_run": None if alone else "asked for with --thorough",
        "items": 64 if alone else None,
    }


def _weights() -> dict[str, Any]:
    modules = [
        {"name": f"model.layers.{layer}.{kind}", "bits": 8 if layer in (0, LAYERS - 1) else 4,
         "group_size": 32, "values": values, "bytes": values + values // 8}
        for layer in range(LAYERS)
        for kind, values in KINDS
    ]  # fmt: skip
    head = {"name": "lm_head", "bits": 8, "group_size": 32, "values": 524288, "bytes": 589824}
    table = {"name": "model.embed_tokens", "bits": 32, "group_size": None, "values": 524288,
             "bytes": 2097152}  # fmt: skip
    return {"modules": [*modules, head, table], "other_bytes": 90_000}


def _provenance() -> dict[str, Any]:
    stated = {"name": "apache-2.0", "source": "README.md", "reason": None}
    silent = {"name": None, "source": None, "reason": "no LICENSE file"}
    return {
        "base": {"name": "acme/tiny", "commit": "0" * 40, "digest": DIGEST, "license": stated,
                 "files": {"config.json": DIGEST, "model.safetensors": DIGEST}},
        "base_before": None,
        "adapters": [{"name": "home-lora", "commit": None, "digest": DIGEST, "license": silent,
                      "files": {"adapter_model.safetensors": DIGEST}}],
        "data": {"evaluation": DIGEST, "calibration": None},
        "versions": {"torch": "2.13.0", "bitsandbytes": None},
        "seeds": {"reference": 0},
        "steps": {"merge": "ae63936196da644d", "reference": "a2faf0f141f61814"},
    }  # fmt: skip
