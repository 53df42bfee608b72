"""`self_test/`: the reference as it travels in the package.

`self_test.json` says what was measured on what, `items.jsonl` holds inputs and answers, the .npy
arrays hold the trained model's top log-probabilities at every scored position, and
`tokenizer_cases.json` what the tokenizer must do. A device needs no more to check itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.files import dump_json, write_text
from edgetune.reference.divergence import top_of_rows
from edgetune.reference.measure import BaseAlone, max_new_tokens, targets_of
from edgetune.reference.render import ScoredItem
from edgetune.reference.rows import RowFile
from edgetune.tasks import Task

TOP_K = 64
# Below this a divergence is rounding: an adapter that changes nothing has nothing to retain.
_NO_DIVERGENCE = 1e-9


@dataclass(frozen=True)
class Reference:
    """Everything measured, ready to be written."""

    task_name: str
    source: str
    seed: int
    items: Sequence[ScoredItem]
    # How many items and positions the data had, of which `items` are the first.
    items_in_data: int
    positions_in_data: int
    answers: Sequence[str | None]
    base: BaseAlone | None
    eos_token_ids: Sequence[int]
    generation: Mapping[str, Any]
    tokenizer_cases: Mapping[str, Any]


def write_self_test(folder: Path, reference: Reference, rows: RowFile, task: Task) -> None:
    """Write the folder. `rows`: log-probabilities of the trained model [positions, vocabulary]."""
    folder.mkdir()
    arrays = top_of_rows(rows, targets_of(reference.items), TOP_K)
    if reference.base is not None:
        arrays["base_kl"] = reference.base.kl.astype("<f4")
    for name, array in sorted(arrays.items()):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    lines, metrics = _measured_items(reference, arrays["target_logprob"], task)
    text = "".join(
        json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        for line in lines
    )
    write_text(folder / "items.jsonl", text)
    # Without line breaks: very long words have thousands of tokens.
    cases = json.dumps(reference.tokenizer_cases, ensure_ascii=False, separators=(",", ":"))
    write_text(folder / "tokenizer_cases.json", cases + "\n")
    head = _head(reference, rows) | {"metrics": metrics}
    if reference.source == "evaluation data":
        # Whoever has the package can read them.
        size = len(text.encode())
        head["evaluation_text"] = {"items": len(reference.items), "bytes": size}
    else:
        head["evaluation_text"] = None
    write_text(folder / "self_test.json", dump_json(head))


def kl_base(reference: Reference) -> float | None:
    """Mean KL(trained ‖ base alone) in nats; null where there is no base to compare with."""
    return None if reference.base is None else float(reference.base.kl.mean())


def _head(reference: Reference, rows: RowFile) -> dict[str, Any]:
    divergence = kl_base(reference)
    return {
        "task": reference.task_name,
        "source": reference.source,
        "vocabulary_size": rows.width,
        "top_k": min(TOP_K, rows.width),
        "items": len(reference.items),
        "items_in_data": reference.items_in_data,
        "positions": rows.rows,
        "positions_in_data": reference.positions_in_data,
        "seed": reference.seed,
        "kl_base": None if divergence is None else {"value": divergence},
        "retention_defined": divergence is not None and divergence > _NO_DIVERGENCE,
        "max_new_tokens": max_new_tokens(reference.items),
        "eos_token_ids": list(reference.eos_token_ids),
        "generation": dict(reference.generation),
    }


def _measured_items(
    reference: Reference, target_logprob: NDArray[np.float32], task: Task
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of `items.jsonl`, and the task's metrics over them."""
    lines, trained_values, base_values = [], [], []
    row = 0
    for number, item in enumerate(reference.items):
        rows = slice(row, row + item.positions)
        row += item.positions
        answer = reference.answers[number]
        trained = task.measure(item.answer, answer, [float(x) for x in target_logprob[rows]])
        trained_values.append(trained)
        base_answer, base = None, dict.fromkeys(trained)
        if reference.base is not None:
            base_answer = reference.base.answers[number]
            logprobs = [float(x) for x in reference.base.target_logprob[rows]]
            base = task.measure(item.answer, base_answer, logprobs)
        base_values.append(base)
        lines.append(
            {
                "id": item.id,
                "prompt_ids": list(item.prompt_ids),
                "target_ids": list(item.target_ids),
                "prompt_text": item.prompt_text,
                "answer": item.answer,
                "reference_answer": answer,
                "base_answer": base_answer,
                "reference_exact": _truth(trained["exact_match"]),
                "base_exact": _truth(base["exact_match"]),
                "reference_answer_logprob": trained["answer_logprob"],
                "base_answer_logprob": base["answer_logprob"],
            }
        )
    measured = reference.source == "evaluation data"
    return lines, _metrics(trained_values, base_values, task) if measured else {}


def _metrics(
    trained: Sequence[Mapping[str, float | None]],
    base: Sequence[Mapping[str, float | None]],
    task: Task,
) -> dict[str, Any]:
    """{metric: {base, reference, n}}, means over the items that have the metric."""
    metrics = {}
    for name in task.HIGHER_IS_BETTER:
        values = [row[name] for row in trained]
        n = sum(value is not None for value in values)
        if n:
            metrics[name] = {
                "base": _mean([row[name] for row in base]),
                "reference": _mean(values),
                "n": n,
            }
    return metrics


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _truth(value: float | None) -> bool | None:
    return None if value is None else bool(value)
