"""Scheme and provider -> Olive's workflow; pure, so that a review of the goldens under
tests/goldens/workflows is a review of what Olive is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.optimize.forms import decoder
from edgetune.optimize.schemes import Scheme
from edgetune.optimize.widths import Widths
from edgetune.providers import check_kernels, find_provider

# Filled in when the workflow runs: a workflow is part of a step's key and names no folder.
CHECKPOINT, CACHE, OUT = "<checkpoint>", "<cache>", "<out>"
CALIBRATION, CODES = decoder.CALIBRATION, decoder.CODES
CACHE_SCALES = decoder.CACHE_SCALES


def make_workflow(
    scheme: Scheme, widths: Widths, provider: str, kv_cache: str = "float32"
) -> dict[str, Any]:
    """Olive's workflow for one scheme on one execution provider, without a search.

    `widths`: of the modules; `kv_cache`: float32 or int8. Raises UsageError when the provider has
    no kernels for the scheme.
    """
    check_kernels(provider, f"the scheme {scheme.name}", scheme.needs)
    accelerator = {
        "device": find_provider(provider).DEVICE_KIND,
        "execution_providers": [provider],
    }
    return {
        "input_model": {"type": "HfModel", "config": {"model_path": CHECKPOINT}},
        "systems": {"local": {"type": "LocalSystem", "config": {"accelerators": [accelerator]}}},
        "passes": decoder.make_passes(scheme, widths, provider, kv_cache),
        "engine": {
            "host": "local",
            "target": "local",
            "search_strategy": None,
            "evaluate_input_model": False,
            "no_artifacts": True,
            "cache_dir": CACHE,
            "output_dir": OUT,
            "log_severity_level": 1,
        },
    }


def fill_workflow(workflow: Mapping[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
    """A copy of a workflow with its placeholders replaced by folders."""

    def fill(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        return folders.get(value, value) if isinstance(value, str) else value

    return {key: fill(value) for key, value in workflow.items()}
