"""The package's self-test on another processor's instructions, in a child under an emulator.

What passes on the build machine can be garbage elsewhere: the same graph runs other kernels there
(an 8-bit product that saturates on AVX2 without VNNI, say). Figures are over items spread evenly
over the self-test, as many as fit a fixed number of tokens, so they come out the same every time.
An emulator is no measure of time: none is taken.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.environments.emulator import Emulation, check_needs, guest
from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.host import probe_host
from edgetune.runtime.manifest import Manifest, Variant
from edgetune.validate.evaluate import Evaluation
from edgetune.validate.fidelity import TOP_K_BOUND, WHOLE_VOCABULARY, Positions, fidelity
from edgetune.validate.metrics import measure_task
from edgetune.validate.self_test import SelfTest, take_items
from edgetune.validate.worker import Worker, open_worker

# A model of 135 million parameters takes up to a second a token; the demo's takes 0.02 to 0.2 s.
MOST_TOKENS = 700
LEAST_ITEMS = 5
# Longer silence than this is a hang.
_SILENCE_S = 1800.0

Progress = Callable[[str], None]


def measure_emulated(
    manifest: Manifest,
    variant: Variant,
    self_test: SelfTest,
    emulation: Emulation,
    device: str,
    folder: Path,
    reference: Path | None,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """The report's `emulated` section. `folder`: where the self-test is; `reference`: the
    reference step's folder, or null.

    Raises UsageError when the emulated processor is not what the device's profile asks for,
    MissingError when nothing runs there, StepFailedError when the package does not.
    """
    numbers = choose_items(self_test)
    taken, _ = take_items(self_test, numbers)
    with tempfile.TemporaryDirectory(prefix="edgetune-emulated-") as scratch:
        figures, log = Path(scratch) / "figures.npz", Path(scratch) / "log"
        job = {
            "package": str(manifest.path.resolve()),
            "variant": variant.name,
            "threads": threads,
            "items": numbers,
            "self_test": str(folder.resolve()),
            "reference": str(reference.resolve()) if reference else None,
            "figures": str(figures),
        }
        with (
            guest(emulation) as (command, environment),
            open_worker(
                ["edgetune.validate.emulated_worker"], [*command, "-s", "-P"], environment, log
            ) as worker,
        ):
            hello = worker.hear(_SILENCE_S)
            check_needs(emulation, hello, device)
            worker.tell(job)
            told = _result(worker, lambda text: progress(f"emulated {emulation.cpu}: {text}"))
        positions = _positions(figures, len(taken.item_of))
    evaluation = Evaluation(positions, tuple(told["answers"]))
    measured = measure_task(taken, evaluation)
    kind = WHOLE_VOCABULARY if reference is not None else TOP_K_BOUND
    host = probe_host()
    on = f"{emulation.cpu} emulated by {emulation.emulator} on an {host.arch} host "
    return {
        **_head(emulation, self_test),
        "fidelity": {
            **fidelity(taken, positions, kind),
            "flips": measured.flips,
            "measured_on": on + host.fingerprint,
        },
        "task_metrics": measured.metrics,
        "tokenizer": told["tokenizer"],
        "instruction_sets": hello.get("instruction_sets"),
        "versions": hello.get("versions") or {},
        "reason": None,
    }


def not_emulated(reason: str, self_test: SelfTest, emulation: Emulation | None) -> dict[str, Any]:
    """The `emulated` section that says why there are no figures."""
    head = _head(emulation, self_test)
    return {**head, "fidelity": None, "task_metrics": {}, "tokenizer": None, "reason": reason}


def choose_items(self_test: SelfTest) -> list[int]:
    """Numbers of items, spread evenly, whose tokens together are at most MOST_TOKENS; at least
    LEAST_ITEMS of them, all where all fit."""
    lengths = [len(item.prompt_ids) + len(item.target_ids) for item in self_test.items]
    if sum(lengths) <= MOST_TOKENS:
        return list(range(len(lengths)))
    count = max(min(LEAST_ITEMS, len(lengths)), int(MOST_TOKENS / (sum(lengths) / len(lengths))))
    return [number * len(lengths) // count for number in range(count)]


def _head(emulation: Emulation | None, self_test: SelfTest) -> dict[str, Any]:
    return {
        "cpu": emulation.cpu if emulation else None,
        "emulator": emulation.emulator if emulation else None,
        "differs": emulation.differs or None if emulation else None,
        "items_total": len(self_test.items),
    }


def _result(worker: Worker, progress: Progress) -> Mapping[str, Any]:
    while True:
        told = worker.hear(_SILENCE_S)
        if "result" in told:
            result: Mapping[str, Any] = told["result"]
            return result
        progress(str(told.get("progress", "")))


def _positions(figures: Path, count: int) -> Positions:
    try:
        with np.load(figures, allow_pickle=False) as found:
            kl, target, top = (found[key] for key in ("kl", "target_logprob", "same_top1"))
    except (OSError, ValueError, KeyError) as why:
        msg = f"the emulated run left no figures ({why})"
        raise StepFailedError(msg) from why
    if not len(kl) == len(target) == len(top) == count:
        msg = f"the emulated run scored {len(kl)} positions, {count} were asked for"
        raise InputRefusedError(msg, "build the package again")
    return Positions(kl, target, top)
