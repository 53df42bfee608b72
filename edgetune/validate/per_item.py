"""What each item gave, compact: a later report is compared with this one item by item."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgetune.validate.evaluate import Evaluation
from edgetune.validate.self_test import SelfTest


def per_item(
    self_test: SelfTest, evaluation: Evaluation, exact: Sequence[bool | None]
) -> dict[str, Any]:
    """The report's `per_item` section: lists of N, in the items' order.

    `exact` is null where the reference was asked for no exact answer, `kl_mean` (nats) where the
    output was not finite. Of an answer only a digest is kept: enough to tell whether it changed.
    The reference's figures go into it, which no report carries, so that whoever has the report
    alone cannot find a short answer by trying; reports of one reference stay comparable.
    """
    secret = self_test.target_logprob.tobytes()
    finite, kl = evaluation.positions.finite, evaluation.positions.kl
    wheres = [self_test.positions(number) for number in range(len(self_test.items))]
    return {
        "ids": [item.id for item in self_test.items],
        "exact": [
            None if item.reference_exact is None or right is None else int(right)
            for item, right in zip(self_test.items, exact, strict=True)
        ],
        "kl_mean": [float(np.mean(kl[where])) if finite[where].all() else None for where in wheres],
        "positions": [where.stop - where.start for where in wheres],
        "answers": [
            None if answer is None else _digest(answer, secret) for answer in evaluation.answers
        ],
    }


def _digest(answer: str, secret: bytes) -> str:
    """Keyed, of the words as `same_answer` compares them: white space, broken characters aside."""
    words = " ".join(answer.replace("\ufffd", "").split())
    return hmac.new(secret, words.encode(), hashlib.sha256).hexdigest()[:16]
