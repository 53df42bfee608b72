"""What a report says beside what is measured for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune import __version__
from edgetune.checksums import self_test_digest
from edgetune.errors import InputRefusedError
from edgetune.files import read_json
from edgetune.host import probe_host, versions_of
from edgetune.runtime.manifest import Manifest
from edgetune.validate.fidelity import WHOLE_VOCABULARY
from edgetune.validate.job import Job

_TOOLS = ("edgetune", "onnxruntime", "onnxruntime-genai", "numpy", "torch")
_MERGE_KEYS = (
    "parity_max_abs", "parity_limit", "parity_enforced", "parity_against", "largest_logit",
    "tensors_used", "tensors_total", "onto", "untied", "rounding_max_abs",
    "certificate", "modules",
)  # fmt: skip


def evidence(job: Job, sections: Mapping[str, Any]) -> dict[str, bool]:
    """What was done, as a report's `evidence` says it; `sections`: those that were measured."""
    return {
        **(job.evidence or {}),
        "opened": True,
        "executed": True,
        "on_device": job.here,
        "emulated": bool(sections["emulated"] and sections["emulated"]["fidelity"]),
        "whole_vocabulary": sections["fidelity"]["kl_kind"] == WHOLE_VOCABULARY,
        "task_metric_measured": bool(sections["task_metrics"]),
        "latency_measured": sections["latency"]["candidate"] is not None,
        "reference_latency_measured": sections["latency"]["reference"] is not None,
    }


def environment(job: Job) -> dict[str, Any]:
    """The machine that measures, and the versions on it."""
    host = probe_host()
    return {
        "fingerprint": host.fingerprint,
        "arch": host.arch,
        "os": host.os,
        "cpu": host.cpu_model,
        "cores": host.cores,
        "memory_bytes": host.memory_bytes,
        "threads": job.threads,
        # edgetune itself may run from a package, not installed.
        "versions": {**versions_of(*_TOOLS), "edgetune": __version__},
    }


def merge_facts(facts: Any) -> dict[str, Any] | None:
    """What the build proved of the merge; the package carries it for a validation elsewhere."""
    if not isinstance(facts, Mapping) or not facts:
        return None
    return {key: facts.get(key) for key in _MERGE_KEYS}


def read_limits(folder: Path) -> Mapping[str, Any]:
    """A self-test's `limits.json`. Raises InputRefusedError for one without tolerances or
    budgets."""
    where = folder / "limits.json"
    limits = read_json(where)
    wanted = ("tolerances", "budgets")
    if isinstance(limits, dict) and all(isinstance(limits.get(key), dict) for key in wanted):
        return limits
    msg = f"{where}: no tolerances and budgets in it"
    raise InputRefusedError(msg, "build the package again")


def shipped_inputs(manifest: Manifest, measured: Path) -> dict[str, str]:
    """The digest of the self-test that ships, where it is not the one that was measured on."""
    own = manifest.path / "self_test"
    if measured == own:
        return {}
    return {"shipped_self_test": self_test_digest(own)}
