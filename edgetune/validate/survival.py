"""Each module's own quantization, alone: which of them cost the fine-tune.

No torch here: a child process runs the merged checkpoint with one weight of the graph at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgetune import statistics
from edgetune.errors import EdgetuneError
from edgetune.statistics import Interval
from edgetune.validate.worker import Worker, open_worker

MODULE = "edgetune.reference.survival_worker"
_LOAD_TIMEOUT_S = 1800.0
_MODULE_TIMEOUT_S = 1800.0

Progress = Callable[[str], None]


def run_modules(
    survival: Mapping[str, Any], files: Mapping[str, Path], threads: int, progress: Progress
) -> dict[str, Any]:
    """The report's `survival` section with `kl_mean` and `retention` of every module, the one that
    costs most first. `survival`: what the weights say; `files`: checkpoint, graph, reference.

    Where it cannot be run the figures stay null, with the reason in `not_run`.
    """
    modules: Sequence[Mapping[str, Any]] = survival["modules"]
    if not modules:
        return {**survival, "not_run": survival["reason"] or "the fine-tune changed no module"}
    if find_spec("torch") is None:
        return {**survival, "not_run": "torch is not installed here"}
    job = {
        **{name: str(path) for name, path in files.items()},
        "modules": len(modules),
        "threads": threads,
    }
    progress("survival: loading the merged model in torch")
    try:
        with open_worker([MODULE]) as worker:
            ready = worker.ask(job, _LOAD_TIMEOUT_S)
            rows = []
            for number, module in enumerate(modules, 1):
                progress(f"survival: module {number} of {len(modules)} alone")
                rows.append({**module, **_alone(worker, str(module["name"]), ready)})
    except EdgetuneError as why:
        return {**survival, "not_run": f"torch cannot run the modules here: {why.message}"}
    rows.sort(key=lambda row: -(row["kl_mean"]["value"] if row["kl_mean"] else 0.0))
    return {**survival, "modules": rows, "items": int(ready["items"]), "not_run": None}


def _alone(worker: Worker, name: str, ready: Mapping[str, Any]) -> dict[str, Any]:
    """KL(trained ‖ this module quantized, the rest in float32), and 1 − its share of KL(trained ‖
    base alone); items are resampled with their positions."""
    kl = worker.ask({"module": name}, _MODULE_TIMEOUT_S)["kl"]
    if kl is None:
        return {"kl_mean": None, "retention": None}
    found: dict[str, Any] = {"retention": None}
    found["kl_mean"] = statistics.ratio_of_sums(kl, ready["positions"]).as_dict()
    base = ready["base_kl"]
    if base is not None and sum(base) > 0:
        lost = statistics.ratio_of_sums(kl, base)
        found["retention"] = Interval(1 - lost.value, 1 - lost.high, 1 - lost.low).as_dict()
    return found
