"""The report's `cost` section: what the fine-tune trained, what ships, what a thousand tokens take.

People fine-tune to save it. Nulls carry a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NO_PARAMETERS = "the package was built by a version that did not count them"


def cost_section(
    limits: Mapping[str, Any], latency: dict[str, Any], package_bytes: int
) -> dict[str, Any]:
    """The section; takes each side's `cost` out of the `latency` section.

    `limits` is the package's `self_test/limits.json`, which carries `parameters` {"trained",
    "total"} from the build.
    """
    parameters = limits.get("parameters") or {}
    reasons = {}
    for key in ("trained", "total"):
        if parameters.get(key) is None:
            reasons[f"{key}_parameters"] = parameters.get("reason") or _NO_PARAMETERS
    sides: dict[str, dict[str, Any] | None] = {}
    for name in ("reference", "candidate"):
        side = latency[name]
        if side is None:
            sides[name], reasons[name] = None, latency["reason"]
            continue
        own = side.pop("cost")
        sides[name] = own
        if why := own.pop("reason"):
            reasons["joules_per_1k_tokens"] = why
    return {
        "trained_parameters": parameters.get("trained"),
        "total_parameters": parameters.get("total"),
        "package_bytes": package_bytes,
        **sides,
        "reasons": reasons,
    }
