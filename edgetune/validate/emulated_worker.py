"""The child that runs a package's self-test inside an emulator.

`python -m edgetune.validate.emulated_worker`, spoken to in JSON lines: it says what processor and
libraries it finds, is given one job, and answers `{"progress": …}` lines, then the result; figures
by position go into a file of numpy's. Loads numpy, onnxruntime-genai, the standard library and
what of edgetune needs no more than those: nothing compiled beside them exists there.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from edgetune.answering import answer_requests, requests, tell
from edgetune.environments.instructions import instruction_sets

_TOOLS = ("numpy", "onnxruntime", "onnxruntime-genai")


def run_job(job: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
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
    progress("opening the package")
    opened = open_variant(manifest, variant, None, int(job["threads"]))
    whole = load_self_test(Path(job["self_test"]))
    taken, kept = take_items(whole, job["items"])
    logprobs = None
    if job["reference"] is not None:
        logprobs = open_logprobs(Path(job["reference"]), whole)[kept]
    found = evaluate(opened, taken, logprobs, progress)
    positions = found.positions
    np.savez(
        job["figures"],
        kl=positions.kl,
        target_logprob=positions.target_logprob,
        same_top1=positions.same_top1,
    )
    progress("tokenizer")
    return {"answers": list(found.answers), "tokenizer": tokenizer_parity(opened, taken)}


def _hello() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in _TOOLS}
    return {
        "machine": platform.machine(),
        "instruction_sets": instruction_sets(),
        "versions": {"python": platform.python_version(), **versions},
    }


def serve(source: TextIO, sink: TextIO) -> None:
    """Answer one job. Raises what goes wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends this process
    tell(sink, _hello())
    for job in requests(source):
        found = run_job(job, lambda text: tell(sink, {"progress": text}))
        tell(sink, {"result": found})
        return


if __name__ == "__main__":
    code = answer_requests(serve, "under the emulator")
    # Threads of the libraries may hang at exit under an emulator; there is nothing left to do.
    os._exit(code)
