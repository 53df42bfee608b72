"""Runs a package over the items of its self-test: teacher-forced scores and greedy answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.errors import InputRefusedError
from edgetune.runtime.decoder import score, score_and_answer
from edgetune.runtime.session import OpenPackage
from edgetune.validate.fidelity import Positions, kl_top_k, kl_whole
from edgetune.validate.self_test import Item, SelfTest

_DEFAULT_NEW_TOKENS = 64


@dataclass(frozen=True)
class Evaluation:
    """What the package did with the items."""

    positions: Positions
    # [N] greedy answers; null for items that are only scored
    answers: tuple[str | None, ...]


def evaluate(
    opened: OpenPackage,
    self_test: SelfTest,
    logprobs: npt.NDArray[np.float32] | None,
    progress: Callable[[str], None],
) -> Evaluation:
    """Score every item, and answer those that the reference answered.

    `logprobs` [P, V] of the reference, or null: then KL is the lower bound from the top k. Raises
    InputRefusedError when package and self-test are of different vocabularies or an item is longer
    than the model's context.
    """
    _check_fit(opened, self_test)
    most = int(self_test.facts.get("max_new_tokens") or _DEFAULT_NEW_TOKENS)
    kls, targets, tops = [], [], []
    answers: list[str | None] = []
    for number, item in enumerate(self_test.items):
        progress(f"item {number + 1} of {len(self_test.items)}")
        where = self_test.positions(number)
        if item.reference_answer is None:
            found, ids = score(opened, item.prompt_ids, item.target_ids), None
        else:
            found, ids = score_and_answer(opened, item.prompt_ids, item.target_ids, most)
        kls.append(_kl(self_test, where, found, logprobs))
        targets.append(found[np.arange(len(found)), list(item.target_ids)].astype(np.float64))
        tops.append(found.argmax(axis=1) == self_test.top_ids[where, 0])
        answers.append(None if ids is None else decode(opened, ids))
    positions = Positions(np.concatenate(kls), np.concatenate(targets), np.concatenate(tops))
    return Evaluation(positions, tuple(answers))


def decode(opened: OpenPackage, ids: list[int]) -> str:
    """The text of tokens, special tokens left out."""
    if not ids:
        return ""
    text = str(opened.tokenizer.decode(np.array(ids, dtype=np.int32)))
    if "\ufffd" not in text:
        return text
    # genai's decode ends at the first broken character (an answer cut in its middle, say); its
    # stream leaves the broken one out and goes on.
    stream = opened.tokenizer.create_stream()
    return "".join(stream.decode(token) for token in ids)


def _kl(
    self_test: SelfTest,
    where: slice,
    found: npt.NDArray[np.float32],
    logprobs: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.float64]:
    if logprobs is not None:
        return kl_whole(logprobs[where], found)
    return kl_top_k(
        self_test.top_ids[where],
        self_test.top_logprobs[where],
        self_test.rest_logprob[where],
        found,
    )


def _check_fit(opened: OpenPackage, self_test: SelfTest) -> None:
    if opened.vocabulary_size != self_test.vocabulary_size:
        msg = (
            f"{opened.variant.name}: a vocabulary of {opened.vocabulary_size} tokens, the "
            f"self-test's reference has {self_test.vocabulary_size}"
        )
        raise InputRefusedError(msg, "build the package again: its parts do not belong together")

    def length(item: Item) -> int:
        return len(item.prompt_ids) + len(item.target_ids)

    longest = max(self_test.items, key=length)
    if length(longest) > opened.context_length:
        msg = (
            f"self-test item {longest.id} has {length(longest)} tokens, the model takes "
            f"{opened.context_length}"
        )
        raise InputRefusedError(msg, "build the package again with shorter evaluation items")


def same_answer(one: str | None, other: str | None) -> bool:
    """Whether two answers are the same text, white space and broken characters aside."""
    first, second = ((text or "").replace("\ufffd", "").split() for text in (one, other))
    return first == second


def worst_examples(
    self_test: SelfTest, evaluation: Evaluation, exact: list[bool | None], most: int = 5
) -> list[dict[str, Any]]:
    """Up to `most` answers that changed, lost ones first, then by the item's mean KL."""
    rows = []
    for number, item in enumerate(self_test.items):
        answer = evaluation.answers[number]
        if answer is None or same_answer(answer, item.reference_answer):
            continue
        kl = float(evaluation.positions.kl[self_test.positions(number)].mean())
        lost = item.reference_exact is True and exact[number] is False
        row = {
            "id": item.id,
            "prompt": item.prompt_text[-300:],
            "expected": item.answer,
            "reference": item.reference_answer,
            "package": answer,
            "lost": lost,
            "kl_mean": kl if np.isfinite(kl) else None,
        }
        rows.append((not lost, -kl if np.isfinite(kl) else -np.inf, number, row))
    return [row for *_, row in sorted(rows, key=lambda entry: entry[:3])[:most]]
