"""A self-test and an evaluation without any model."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetune.validate.evaluate import Evaluation
from edgetune.validate.fidelity import Positions
from edgetune.validate.self_test import Item, SelfTest


def make_item(number: int, answer: str | None, reference: str | None, **more: Any) -> Item:
    """An item with two targets."""
    exact = None if answer is None else answer == reference
    values: dict[str, Any] = {
        "id": str(number),
        "prompt_ids": (1, 2),
        "target_ids": (3, 4),
        "prompt_text": f"prompt {number}",
        "answer": answer,
        "reference_answer": reference,
        "base_answer": None if answer is None else "no",
        "reference_exact": exact,
        "base_exact": None if answer is None else False,
        "reference_answer_logprob": -0.1,
        "base_answer_logprob": -3.0,
        **more,
    }
    return Item(**values)


def make_self_test(items: list[Item], base_kl: Any = 2.0, **facts: Any) -> SelfTest:
    """Two positions an item; KL(trained ‖ base alone) as given."""
    count = 2 * len(items)
    return SelfTest(
        facts={
            "task": "text-generation",
            "vocabulary_size": 8,
            "metrics": {"exact_match": {}, "answer_logprob": {}},
            **facts,
        },
        items=tuple(items),
        item_of=np.repeat(np.arange(len(items)), 2),
        top_ids=np.zeros((count, 1), dtype=np.int64),
        top_logprobs=np.zeros((count, 1), dtype=np.float32),
        rest_logprob=np.full(count, -1e30, dtype=np.float32),
        target_logprob=np.full(count, -0.1, dtype=np.float32),
        base_kl=None if base_kl is None else np.full(count, base_kl, dtype=np.float32),
        tokenizer_cases={},
    )


def make_evaluation(answers: list[str | None], kl: Any = 0.01, logprob: float = -0.1) -> Evaluation:
    """The same KL and target log-probability everywhere, or an array of KLs."""
    count = 2 * len(answers)
    positions = Positions(
        kl=np.broadcast_to(np.asarray(kl, dtype=np.float64), (count,)).copy(),
        target_logprob=np.full(count, logprob),
        same_top1=np.ones(count, dtype=bool),
    )
    return Evaluation(positions, tuple(answers))
