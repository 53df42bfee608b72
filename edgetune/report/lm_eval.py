"""A validation as lm-evaluation-harness writes its own, so that what reads those reads this.

`<DIR>/<model>/results_<time>.json` and `samples_<task>_<time>.jsonl`, in the layout of version
0.4.13 (lm_eval/result_schema.py and loggers/evaluation_tracker.py), for two models: the trained
model and the package. Samples of both carry the same hashes of document, prompt and target, so that
they pair. The harness itself is not needed. Pure but for `write_lm_eval`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from edgetune.errors import MissingError, UsageError
from edgetune.files import dump_json, write_text

Side = Literal["reference", "package"]
_EXACT, _LOGPROB = "exact_match", "answer_logprob"
# Items that expect an answer are generated, others scored: two tasks, as the harness has them.
_SCORED = "_scored"


def check_folder(folder: Path, package: Path | None = None) -> None:
    """Raise UsageError for a folder that cannot be written to, or that lies in the package."""
    if package is not None and folder.resolve().is_relative_to(package.resolve()):
        msg = f"--lm-eval {folder}: inside the package, which holds what was built and no more"
        raise UsageError(msg, "name a folder elsewhere")
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "cannot be written to" if place.is_dir() else "is a file"
        msg = f"--lm-eval {folder}: {place} {what}"
        raise UsageError(msg, "name a folder that is yours")


def write_lm_eval(
    folder: Path, report: Mapping[str, Any], answers: Mapping[str, Any], when: datetime
) -> list[Path]:
    """Write the results of both models below `folder`; returns the results files.

    `answers`: of `edgetune.validate.answers`. Raises MissingError when the folder cannot be
    written to.
    """
    date = when.isoformat().replace(":", "-")
    written = []
    sides: tuple[Side, Side] = ("reference", "package")
    for side in sides:
        results, samples = make_results(report, answers, side, when)
        place = folder / results["model_name_sanitized"]
        try:
            for task, rows in samples.items():
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_text(place / f"samples_{task}_{date}.jsonl", lines)
            write_text(place / f"results_{date}.json", dump_json(results))
        except OSError as why:
            msg = f"{place}: cannot be written to ({why.strerror})"
            raise MissingError(msg, "name another folder with --lm-eval") from why
        written.append(place / f"results_{date}.json")
    return written


def make_results(
    report: Mapping[str, Any], answers: Mapping[str, Any], side: Side, when: datetime
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(results, {task: samples}) of one side."""
    recipe = str(report["identifier"]).split("@")[0]
    own = "trained" if side == "reference" else f"{report['variant']}@{report['device']}"
    model = f"{recipe}/{own}"
    samples = {}
    for task, items in (
        (recipe, [row for row in answers["items"] if row["expected"] is not None]),
        (recipe + _SCORED, [row for row in answers["items"] if row["expected"] is None]),
    ):
        if items:
            samples[task] = [
                _sample(number, row, row[side], answers) for number, row in enumerate(items)
            ]
    metrics = {task: rows[0]["metrics"] for task, rows in samples.items()}
    results = {
        "results": {task: _metrics(task, rows) for task, rows in samples.items()},
        "group_subtasks": {task: [] for task in samples},
        "configs": {task: _config(task, metrics[task], answers) for task in samples},
        "versions": dict.fromkeys(samples, 1.0),
        "n-shot": dict.fromkeys(samples, 0),
        "higher_is_better": {task: dict.fromkeys(metrics[task], True) for task in samples},
        "n-samples": {
            task: {"original": len(rows) + answers["items_left_out"], "effective": len(rows)}
            for task, rows in samples.items()
        },
        "config": {
            "model": "edgetune",
            "model_args": _model_args(report, model, side),
            "batch_size": "1",
            "device": "cpu",
            "limit": None,
            "bootstrap_iters": 0,
            "gen_kwargs": None,
            "random_seed": int(answers["seed"]),
        },
        "date": when.timestamp(),
        **_tokenizer(answers),
        "max_length": answers["context_length"],
        "model_source": "edgetune",
        "model_name": model,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": answers["chat_template"],
        "chat_template_sha": _hash(answers["chat_template"]) if answers["chat_template"] else None,
        "task_hashes": {
            task: _hash(
                "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)
            )
            for task, rows in samples.items()
        },
    }
    return results, samples


def _sample(
    number: int, row: Mapping[str, Any], side: Mapping[str, Any], answers: Mapping[str, Any]
) -> dict[str, Any]:
    """A line of samples_*.jsonl. A greedy answer, or the log-probability of the target in nats."""
    generated = row["expected"] is not None
    target = row["expected"] if generated else row["target"]
    doc = {"id": row["id"], "prompt": row["prompt"], "answer": target}
    metrics = {_LOGPROB: side[_LOGPROB]}
    arguments: dict[str, Any] = {"arg_0": row["prompt"]}
    if generated:
        metrics = {_EXACT: float(side[_EXACT]), **metrics}
        most = answers["max_new_tokens"]
        arguments["arg_1"] = {"until": [], "do_sample": False, "max_gen_toks": most}
        response = str(side["answer"])
    else:
        arguments = {"arg_0": row["prompt"] + target}
        response = str(side[_LOGPROB] * row["target_tokens"])
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": arguments},
        "resps": [[response]],
        "filtered_resps": [response],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(arguments["arg_0"]),
        "target_hash": _hash(target),
        **metrics,
    }


def _metrics(task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": task, "alias": task, "sample_len": len(rows)}
    for name in rows[0]["metrics"]:
        values = [float(row[name]) for row in rows]
        found[f"{name},none"] = math.fsum(values) / len(values)
        found[f"{name}_stderr,none"] = _stderr(values)
    return found


def _stderr(values: Sequence[float]) -> float | str:
    """The standard error of a mean as the harness gives it: sample deviation / √n."""
    n = len(values)
    if n < 2:
        return "N/A"
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def _config(task: str, metrics: Sequence[str], answers: Mapping[str, Any]) -> dict[str, Any]:
    generated = _EXACT in metrics
    return {
        "task": task,
        "output_type": "generate_until" if generated else "loglikelihood_rolling",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics
        ],
        "num_fewshot": 0,
        "repeats": 1,
        "should_decontaminate": False,
        "metadata": {"version": 1.0, "task": answers["task"], "source": answers["source"]},
    }


def _model_args(report: Mapping[str, Any], model: str, side: Side) -> dict[str, Any]:
    found: dict[str, Any] = {"pretrained": model}
    if side == "package":
        found |= {
            "package_digest": report["package_digest"],
            "threads": report["environment"]["threads"],
        }
        # The harness' schema has no null here.
        if version := report["environment"]["versions"].get("onnxruntime-genai"):
            found["onnxruntime_genai"] = version
    return found


def _tokenizer(answers: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens as [token, id], both text; `None` where there is none."""
    roles = answers["special_tokens"]
    found: dict[str, Any] = {}
    for role in ("pad", "eos", "bos"):
        token = roles.get(f"{role}_token") or {"text": None, "id": None}
        found[f"tokenizer_{role}_token"] = [str(token["text"]), str(token["id"])]
    end = roles.get("eos_token") or {}
    return {**found, "eot_token_id": end.get("id")}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
