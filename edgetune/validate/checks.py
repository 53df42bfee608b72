"""Which questions a report answers: the recipe's tolerances and budgets as checks with limits.

A limit that the recipe sets to null switches its check off. Verdicts are given elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgetune.report.questions import DROP, EMULATED, LONG_CONTEXT
from edgetune.validate.metrics import EXACT_MATCH

_MEASURED_ON_DEVICE = ("time_to_answer_ratio", "ttft_ms", "decode_tokens_per_s", "peak_rss_mb")


def make_checks(limits: Mapping[str, Any], report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The checks [{name, limit, required, reason}] of a report whose sections are filled.

    `reason` says why a figure is missing; it means nothing where the figure is there.
    """
    return [
        *_fidelity_checks(limits["tolerances"], report),
        *_long_context_checks(limits["tolerances"], report.get("long_context")),
        *_emulated_checks(limits["tolerances"], report),
        *_budget_checks(limits, report),
    ]


def _fidelity_checks(
    tolerances: Mapping[str, Any], report: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    reasons = report["fidelity"]["reasons"]
    for name in ("retention", "kl_mean"):
        if tolerances.get(name) is not None:
            yield _check(name, tolerances[name], reasons.get(name))
    if tolerances.get("task_metric_drop") is not None:
        reason = None
        if EXACT_MATCH not in report["task_metrics"]:
            reason = "there are no evaluation items with an expected answer"
        yield _check(EXACT_MATCH + DROP, tolerances["task_metric_drop"], reason)
    yield _check("tokenizer_parity", 0)
    yield _check("finite_outputs", 0)


def _long_context_checks(
    tolerances: Mapping[str, Any], section: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """KL on long texts, against the limit that it has on short ones."""
    limit = tolerances.get("kl_mean")
    if limit is None or section is None or not section["stretches"]:
        return
    reasons = [row["reason"] for row in section["stretches"] if row["reason"]]
    # Long texts that the package carries and nobody measured are no pass.
    yield _check(LONG_CONTEXT, limit, "; ".join(reasons) or None, required=True)


def _emulated_checks(
    tolerances: Mapping[str, Any], report: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The same questions of what an emulated processor made of the package."""
    emulated = report.get("emulated")
    if emulated is None or emulated["fidelity"] is None:
        return
    for check in _fidelity_checks(tolerances, emulated):
        few = emulated["fidelity"]["items"] < emulated["items_total"]
        # Some of the items say how far the output is, not whether two answers in a hundred
        # are lost: the figure is shown, and is no question.
        if not (few and check["name"].endswith(DROP)):
            yield {**check, "name": EMULATED + check["name"]}


def _budget_checks(
    limits: Mapping[str, Any], report: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    budgets, on_device = limits["budgets"], report["evidence"]["on_device"]
    # What was not measured on the device is missing only if the recipe asks for it; on the device
    # itself a package alone has no torch to compare with.
    required = bool(limits.get("require_on_device")) and not on_device
    for name in _MEASURED_ON_DEVICE:
        if budgets.get(name) is not None:
            reason = report["latency"]["reason"]
            if name == "peak_rss_mb" and reason is None:
                reason = "the system does not tell a process's peak memory"
            yield _check(name, budgets[name], reason, required)
    if budgets.get("package_bytes") is not None:
        yield _check("package_bytes", budgets["package_bytes"])


def _check(
    name: str, limit: float, reason: str | None = None, required: bool = False
) -> dict[str, Any]:
    return {"name": name, "limit": float(limit), "required": required, "reason": reason}
