"""Real builds for the tests, several in one child process: Olive takes seconds to import, and
leaves handlers and variables behind in the process that does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROVIDER = "CPUExecutionProvider"


def build_all(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Build `arguments["jobs"]`, [{checkpoint, scheme}], each into `out/<its number>`.

    Returns {number: facts}, or {"error", "exit_code"} of a job that was refused. A job's `spoil`
    names a function here that is called before it.
    """
    from edgetune.errors import EdgetuneError
    from edgetune.optimize.optimize import optimize_step
    from edgetune.optimize.schemes import parse_scheme
    from edgetune.optimize.workflow import make_workflow

    found: dict[str, Any] = {}
    for number, job in enumerate(arguments["jobs"]):
        scheme, group = parse_scheme(job["scheme"])
        workflow = make_workflow(scheme, group, PROVIDER)
        workflow["passes"]["builder"]["config"] |= job.get("options", {})
        folder = out / str(number)
        folder.mkdir()
        step = {"checkpoint": job["checkpoint"], "workflow": workflow, "scheme": scheme.name}
        try:
            with _spoiled(job.get("spoil")):
                found[str(number)] = optimize_step(
                    {**step, "group_size": group, "provider": PROVIDER}, folder, progress
                )
        except EdgetuneError as why:
            left = sorted(p.name for p in folder.iterdir())
            found[str(number)] = {"error": why.message, "exit_code": why.exit_code, "left": left}
    return found


def _spoiled(name: str | None) -> Any:
    """A context in which the builder misbehaves."""
    from contextlib import nullcontext
    from unittest import mock

    from edgetune.optimize import olive

    def write_nothing(checkpoint: str, folder: Path, *rest: Any) -> None:
        folder.mkdir(exist_ok=True)

    def fail(*rest: Any) -> None:
        msg = "no such tensor"
        raise KeyError(msg)

    def refuse(*rest: Any) -> None:
        msg = "this builder takes no such option"
        raise ValueError(msg)

    def fill_disk(*rest: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_memory(*rest: Any) -> None:
        raise MemoryError

    def forget_data(*rest: Any) -> None:
        build(*rest)
        (rest[1] / "model.onnx.data").unlink()

    def load_whole(*rest: Any) -> None:
        with mock.patch.object(olive.streaming, "corrections", return_value={}):
            build(*rest)

    build = olive._build
    made = (write_nothing, fail, refuse, fill_disk, fill_memory, forget_data, load_whole)
    faults = {f.__name__: f for f in made}
    return mock.patch.object(olive, "_build", faults[name]) if name else nullcontext()


def measure_parity(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """`arguments["pairs"]`, [[checkpoint, genai folder]] -> {number: [largest difference of logits,
    largest logit]}, teacher-forced, a token at a time through onnxruntime-genai, torch float32."""
    import numpy as np
    import onnxruntime_genai as og
    import torch
    from transformers import AutoModelForCausalLM

    found: dict[str, Any] = {}
    for number, (checkpoint, folder) in enumerate(arguments["pairs"]):
        torch_model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        tokens = np.random.default_rng(0).integers(0, torch_model.config.vocab_size, 48)
        with torch.no_grad():
            wanted = torch_model(torch.tensor(tokens[None])).logits[0].numpy()
        model = og.Model(str(folder))
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=64)
        generator = og.Generator(model, parameters)
        rows = []
        for begin, end in [(0, 8), *((n, n + 1) for n in range(8, 48))]:
            generator.append_tokens(tokens[None, begin:end].astype(np.int32))
            rows.append(np.asarray(generator.get_logits()).reshape(-1))
        difference = float(np.abs(np.stack(rows) - wanted[7:]).max())
        found[str(number)] = [difference, float(np.abs(wanted).max())]
    return found
