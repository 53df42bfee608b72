"""The child that runs a package's self-test inside an emulator.

`python -m edgetune.validate.emulated_worker`, spoken to in JSON lines: it says what processor and
libraries it finds, is given one job, and answers `{"progress": …}` lines, then the result; figures
by position go into a file of numpy's. Loads numpy, onnxruntime-genai, the standard library and
what of edgetune needs no more than those: nothing compiled beside them exists there.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import traceback
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetune.child import die_with_parent
from edgetune.environments.instructions import instruction_sets
from edgetune.errors import STEP_FAILED, EdgetuneError

_TOOLS = ("numpy", "onnxruntime", "onnxruntime-genai")
_answers = sys.stdout


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """{"answers": [N], "tokenizer": the report's section}; writes `figures` (npz: kl,
    target_logprob, same_top1 [P]).

    job: package, variant, threads, self_test (folder), items (numbers), reference (the step's
    folder or null), figures (path). Raises what opening and evaluating a package raise.
    """
    import numpy as np

    from edgetune.runtime.manifest import choose_variant, read_manifest
    from edgetune.runtime.session import open_variant
    from edgetune.validate.evaluate import evaluate
    from edgetune.validate.self_test import load_self_test, open_logprobs, take_items
    from edgetune.validate.tokenizer_parity import tokenizer_parity

    # The parent has checked every file's digest already.
    manifest = read_manifest(Path(job["package"]), verify=False)
    variant = choose_variant(manifest, job["variant"], None)
    _tell({"progress": "opening the package"})
    opened = open_variant(manifest, variant, None, int(job["threads"]))
    whole = load_self_test(Path(job["self_test"]))
    taken, kept = take_items(whole, job["items"])
    logprobs = None
    if job["reference"] is not None:
        logprobs = open_logprobs(Path(job["reference"]), whole)[kept]
    found = evaluate(opened, taken, logprobs, lambda text: _tell({"progress": text}))
    positions = found.positions
    np.savez(
        job["figures"],
        kl=positions.kl,
        target_logprob=positions.target_logprob,
        same_top1=positions.same_top1,
    )
    _tell({"progress": "tokenizer"})
    return {"answers": list(found.answers), "tokenizer": tokenizer_parity(opened, taken)}


def _hello() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in _TOOLS}
    return {
        "machine": platform.machine(),
        "instruction_sets": instruction_sets(),
        "versions": {"python": platform.python_version(), **versions},
    }


def _tell(message: Mapping[str, Any]) -> None:
    _answers.write(json.dumps(message) + "\n")
    _answers.flush()


def main() -> int:
    """Answer one job, or say why it cannot be answered."""
    global _answers
    die_with_parent()
    # What a library prints belongs to the log and not between the answers.
    _answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends this process
    try:
        _tell(_hello())
        job = json.loads(sys.stdin.readline() or '{"stop": true}')
        if "stop" not in job:
            _tell({"result": run_job(job)})
    except EdgetuneError as why:
        error = {"exit_code": why.exit_code, "message": why.message, "hint": why.hint}
        _tell({"error": error})
    except Exception as why:
        traceback.print_exc()
        message = f"under the emulator: {type(why).__name__}: {why}"
        _tell({"error": {"exit_code": STEP_FAILED, "message": message, "hint": ""}})
    return 0


if __name__ == "__main__":
    code = main()
    # Threads of the libraries may hang at exit under an emulator; there is nothing left to do.
    os._exit(code)
