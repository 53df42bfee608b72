"""Real builds for the tests, several in one child process: Olive takes seconds to import, and
leaves handlers and variables behind in the process that does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

PROVIDER = "CPUExecutionProvider"


def build_all(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Build `arguments["jobs"]`, [{checkpoint, scheme, scale_bits, kv_cache, protect, changed,
    base, calibration}], each into `out/<its number>`.

    Returns {number: facts}, or {"error", "exit_code"} of a job that was refused. A job's `spoil`
    names a function here that is called before it, its `without` a correction that is left out;
    with `unchecked` it is built although its config is known to give a wrong graph.
    """
    from edgetune.errors import EdgetuneError
    from edgetune.files import read_json
    from edgetune.optimize.optimize import optimize_step
    from edgetune.optimize.schemes import make_widths, parse_scheme
    from edgetune.optimize.workflow import make_workflow

    found: dict[str, Any] = {}
    for number, job in enumerate(arguments["jobs"]):
        scheme, group = parse_scheme(job["scheme"])
        scheme = replace(scheme, scale_bits=job.get("scale_bits", scheme.scale_bits))
        layers = int(read_json(Path(job["checkpoint"]) / "config.json")["num_hidden_layers"])
        widths = make_widths(
            scheme, group, job.get("protect"), layers=layers, changed=job.get("changed", ())
        )
        kv_cache = job.get("kv_cache", "float32")
        workflow = make_workflow(scheme, widths, PROVIDER, kv_cache)
        workflow["passes"]["builder"]["config"] |= job.get("options", {})
        folder = out / str(number)
        folder.mkdir()
        step = {
            "checkpoint": job["checkpoint"],
            "workflow": workflow,
            "scheme": scheme.name,
            "kv_cache": kv_cache,
            "base": job.get("base"),
            "calibration": job.get("calibration"),
        }
        try:
            spoiled, without = _spoiled(job.get("spoil")), _uncorrected(job.get("without"))
            with spoiled, without, _unchecked(bool(job.get("unchecked"))):
                found[str(number)] = optimize_step(
                    {**step, "widths": widths.as_json(), "provider": PROVIDER}, folder, progress
                )
        except EdgetuneError as why:
            left = sorted(p.name for p in folder.iterdir())
            found[str(number)] = {"error": why.message, "exit_code": why.exit_code, "left": left}
    return found


def _spoiled(name: str | None) -> Any:
    """A context in which the builder misbehaves."""
    from contextlib import nullcontext
    from unittest import mock

    from edgetune.optimize import corrections, olive

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
        with mock.patch.object(corrections, "streaming", return_value={}):
            build(*rest)

    build = olive._build
    made = (write_nothing, fail, refuse, fill_disk, fill_memory, forget_data, load_whole)
    faults = {f.__name__: f for f in made}
    return mock.patch.object(olive, "_build", faults[name]) if name else nullcontext()


def _uncorrected(method: str | None) -> Any:
    """A context in which one correction of the builder is left out."""
    from contextlib import nullcontext
    from unittest import mock

    from edgetune.optimize import corrections

    make = corrections.make_corrections

    def fewer(*rest: Any) -> Any:
        return [row for row in make(*rest) if row[1] != method]

    return mock.patch.object(corrections, "make_corrections", fewer) if method else nullcontext()


def _unchecked(yes: bool) -> Any:
    """A context in which no config is refused."""
    from contextlib import nullcontext
    from unittest import mock

    from edgetune.optimize.forms import decoder

    return mock.patch.object(decoder, "export_problem", return_value=None) if yes else nullcontext()


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


def build_families(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """`build_all`, and `measure_family` of every graph: {number: facts of both}. A job's `long` is
    `measure_family`'s."""
    found = build_all(arguments, out, progress)
    for number, job in enumerate(arguments["jobs"]):
        if "error" not in found[str(number)]:
            folder = out / str(number)
            found[str(number)] |= measure_family(Path(job["checkpoint"]), folder, job["long"])
    return found


def measure_family(checkpoint: Path, folder: Path, long: int) -> dict[str, Any]:
    """A graph against torch in float32, on random tokens: prompts, and a token at a time.

    `long`: 0, or a length of text beyond which the model's positions change. Facts: `difference`
    and `largest` logit, `kl_mean` in nats, `answer` and `expected` (greedy tokens).
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from edgetune.runtime.decoder import generate, log_softmax, score_and_answer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    opened = _opened(folder)
    tokens = np.random.default_rng(0).integers(0, 256, max(long, 80)).tolist()
    spans = [(8, 80), (60, 66), (1, 4)]
    if long:
        spans += [(long - 6, long), (long, long)]
    wanted, found = [], []
    for start, end in spans:
        wanted.append(_torch_rows(model, tokens, start, end))
        found.append(_genai_rows(opened, tokens, start, end))
    expected, got = np.concatenate(wanted), np.concatenate(found)
    kl = 0.0
    for one, other in zip(expected, got, strict=True):
        logprobs = log_softmax(one).astype(np.float64)
        kl += float((np.exp(logprobs) * (logprobs - log_softmax(other))).sum())
    prompt = tokens[: long - 6 if long else 40]
    answer = list(generate(opened, prompt, 10))
    return {
        "graph_bytes": sum(p.stat().st_size for p in folder.glob("model.onnx*")),
        "difference": float(np.abs(got - expected).max()),
        "largest": float(np.abs(expected).max()),
        "kl_mean": kl / len(expected),
        "answer": answer,
        "scored_answer": score_and_answer(opened, prompt, tokens[len(prompt) :][:5], 10)[1],
        "expected": _torch_answer(model, prompt, opened.eos_token_ids, 10),
    }


def _opened(folder: Path) -> Any:
    """A flat genai folder as the runtime sees a package."""
    from types import SimpleNamespace

    import onnxruntime_genai as og

    from edgetune.files import read_json

    config = read_json(folder / "genai_config.json")
    ends = config["model"]["eos_token_id"]
    return SimpleNamespace(
        model=og.Model(str(folder)),
        config=config,
        context_length=config["model"]["context_length"],
        eos_token_ids=tuple(ends) if isinstance(ends, list) else (ends,),
    )


def _torch_rows(model: Any, tokens: list[int], start: int, end: int) -> Any:
    """[end - start + 1, vocabulary] logits after start … end tokens, each text read anew: the
    positions of a LongRoPE model depend on how long the text is."""
    import numpy as np
    import torch

    with torch.inference_mode():
        if end <= 4096:
            return model(torch.tensor([tokens[:end]])).logits[0, start - 1 :].numpy()
        texts = [torch.tensor([tokens[:length]]) for length in range(start, end + 1)]
        return np.stack([model(t, logits_to_keep=1).logits[0, -1].numpy() for t in texts])


def _genai_rows(opened: Any, tokens: list[int], start: int, end: int) -> Any:
    """The same through the runtime: a prompt of `start` tokens, then one at a time."""
    import numpy as np

    from edgetune.runtime import decoder

    generator = decoder.start(opened, tokens[:start], end)
    rows = [np.asarray(generator.get_logits()).reshape(-1)]
    for token in tokens[start:end]:
        decoder.append(opened, generator, token)
        rows.append(np.asarray(generator.get_logits()).reshape(-1))
    return np.stack(rows)


def _torch_answer(model: Any, prompt: list[int], ends: tuple[int, ...], most: int) -> list[int]:
    import torch

    answer: list[int] = []
    with torch.inference_mode():
        while len(answer) < most:
            text = torch.tensor([[*prompt, *answer]])
            token = int(model(text, logits_to_keep=1).logits[0, -1].argmax())
            if token in ends:
                break
            answer.append(token)
    return answer
