"""What is measured on the trained model, on the base alone, and on the merged checkpoint.

Each function takes a loaded model; none keeps it. Rows of a `RowFile` hold the trained model's
logits until `divergence.to_log_probabilities` turns them into what is kept.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.errors import StepFailedError, UsageError
from edgetune.files import need_space
from edgetune.reference.divergence import kl_rows, log_softmax, pick
from edgetune.reference.dora import kept_norms
from edgetune.reference.generation import greedy
from edgetune.reference.render import ScoredItem
from edgetune.reference.rows import RowFile
from edgetune.reference.scoring import score_items
from edgetune.reference.tokenizer import decode

_Result = TypeVar("_Result")
Progress = Callable[[str], None]

# Beyond the longest expected answer, so that an answer that goes on is seen to; and a limit.
_MORE_NEW_TOKENS = 8
_MOST_NEW_TOKENS = 256
_SMALL_BYTES = 64_000_000


@dataclass(frozen=True)
class BaseAlone:
    """The base alone against the trained model."""

    # KL(trained ‖ base alone) in nats, [positions]
    kl: NDArray[np.float64]
    # Log-probability of each target token in nats, [positions]
    target_logprob: NDArray[np.float64]
    # The greedy answer of each item; null where none is expected.
    answers: list[str | None]


@dataclass(frozen=True)
class Distance:
    """A merged checkpoint from the unmerged model that it must equal, and from the trained one."""

    # The largest difference of logits from the former, and the largest logit of it.
    max_abs: float
    largest_logit: float
    # KL(trained ‖ merged) in nats, and whether both rank the same token first: [positions]
    kl: NDArray[np.float64]
    same_top1: NDArray[np.bool_]


def threads_for(checkpoint: Path, threads: int) -> int:
    """How many threads a model is worth: one for a small one, whose operations are shorter than
    the waiting of threads for each other."""
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    return 1 if size < _SMALL_BYTES else threads


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Run torch on a given number of threads, with deterministic algorithms where it has them."""
    threads_before = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(before)


def with_model(load: Callable[[], Any], use: Callable[[Any], _Result]) -> _Result:
    """`use(load())`, with the model gone before the next one comes."""

    def loaded() -> _Result:
        model = load()
        with kept_norms(model):
            return use(model)

    try:
        return loaded()
    finally:
        gc.collect()


def targets_of(items: Sequence[ScoredItem]) -> NDArray[np.int64]:
    """Every scored token in item order, [positions]."""
    return np.array([token for item in items for token in item.target_ids], dtype=np.int64)


def write_logits(
    model: Any, items: Sequence[ScoredItem], path: Path, label: str, progress: Progress
) -> RowFile:
    """The model's logits at all scored positions, as rows of a new file.

    Raises MissingError when the disk has no room for them.
    """
    positions = sum(item.positions for item in items)
    rows: RowFile | None = None
    for row, logits in score_items(model, items, label, progress):
        if rows is None:
            width = logits.shape[1]
            need_space(path.parent, positions * width * 4, "the reference's log-probabilities")
            rows = RowFile(path, positions, width)
        rows.write(row, logits.numpy())
    if rows is None:
        msg = "nothing is left to score"
        raise UsageError(msg, "name evaluation data with more than one token an item")
    return rows


def greedy_answers(
    model: Any,
    tokenizer: Any,
    items: Sequence[ScoredItem],
    eos: Sequence[int],
    context: int | None,
    label: str,
    progress: Progress,
) -> list[str | None]:
    """The greedy answer of each item that expects one; null for the others."""
    asked = [number for number, item in enumerate(items) if item.answer is not None]
    limit = max_new_tokens(items)

    def most_new(prompt_length: int) -> int:
        return limit if context is None else min(limit, context - prompt_length)

    found = greedy(
        model,
        [items[number].prompt_ids for number in asked],
        eos,
        most_new,
        lambda done: progress(f"{label}: answer {done} of {len(asked)}"),
    )
    answers: list[str | None] = [None] * len(items)
    for number, ids in zip(asked, found, strict=True):
        answers[number] = decode(tokenizer, ids)
    return answers


def max_new_tokens(items: Sequence[ScoredItem]) -> int:
    """How long a greedy answer may get, in tokens; 0 where no item expects one."""
    longest = max((item.positions for item in items if item.answer is not None), default=0)
    return min(longest + _MORE_NEW_TOKENS, _MOST_NEW_TOKENS) if longest else 0


def measure_base(
    model: Any,
    items: Sequence[ScoredItem],
    trained: RowFile,
    answer: Callable[[Any, str], list[str | None]],
    progress: Progress,
) -> BaseAlone:
    """How far the base alone is from the trained model, and what it answers.

    Raises UsageError when its vocabulary is another one: no divergence is defined then.
    """
    label = "base alone"
    targets = targets_of(items)
    kl: list[NDArray[np.float64]] = []
    target_logprob: list[NDArray[np.float64]] = []
    for row, logits in score_items(model, items, label, progress):
        count, width = logits.shape
        if width != trained.width:
            msg = f"the base alone has a vocabulary of {width}, the trained model {trained.width}"
            raise UsageError(msg, "name the checkpoint that the fine-tune started from, or none")
        values = logits.numpy()
        kl.append(kl_rows(trained.read(row, count), values))
        target_logprob.append(pick(log_softmax(values), targets[row : row + count]))
    return BaseAlone(np.concatenate(kl), np.concatenate(target_logprob), answer(model, label))


def measure_distance(
    model: Any,
    items: Sequence[ScoredItem],
    trained: RowFile,
    progress: Progress,
    unmerged: RowFile | None = None,
) -> Distance:
    """The merged checkpoint against the logits that it must give (`unmerged`, by default the
    trained model's), and against the trained model's.

    Raises StepFailedError when its vocabulary is another one.
    """
    expected = unmerged or trained
    difference = largest = 0.0
    kl: list[NDArray[np.float64]] = []
    same: list[NDArray[np.bool_]] = []
    for row, logits in score_items(model, items, "merged checkpoint", progress):
        count, width = logits.shape
        if width != expected.width:
            msg = f"the merged checkpoint has a vocabulary of {width}, expected {expected.width}"
            raise StepFailedError(msg, "this is a fault of the merge; please report it")
        found, wanted = logits.numpy(), expected.read(row, count)
        difference = max(difference, float(np.abs(found - wanted).max()))
        largest = max(largest, float(np.abs(wanted).max()))
        own = wanted if unmerged is None else trained.read(row, count)
        kl.append(kl_rows(own, found))
        same.append(own.argmax(1) == found.argmax(1))
    return Distance(difference, largest, np.concatenate(kl), np.concatenate(same))
