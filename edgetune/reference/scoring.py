"""Logits of a causal language model at the scored positions, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edgetune.errors import StepFailedError
from edgetune.reference.render import ScoredItem

# Logits held at once, as float32: 128 MiB. A longer target is fed in parts, through the cache.
_MOST_LOGITS = 1 << 25


def score_items(
    model: Any, items: Sequence[ScoredItem], label: str, progress: Callable[[str], None]
) -> Iterator[tuple[int, Tensor]]:
    """(first row, float32 logits [n, vocabulary]) for all scored positions, in item order.

    One item at a time: padding would change the rounding. Row r predicts the r-th target token.
    Raises StepFailedError, with the item, where logits are not finite.
    """
    row = 0
    for number, item in enumerate(items, 1):
        progress(f"{label}: item {number} of {len(items)}")
        for logits in _logits_of(model, item):
            if not bool(torch.isfinite(logits).all()):
                msg = f"{label}: logits that are not finite at item {item.id}"
                raise StepFailedError(msg, "a weight of the base or an adapter is broken")
            yield row, logits
            row += logits.shape[0]


def vocabulary_size(model: Any) -> int:
    """The width of the model's logits, as its config says it."""
    return int(model.config.get_text_config().vocab_size)


def _logits_of(model: Any, item: ScoredItem) -> Iterator[Tensor]:
    """The item's logits in parts of at most `_MOST_LOGITS` values."""
    most = max(1, _MOST_LOGITS // vocabulary_size(model))
    given = [*item.prompt_ids, *item.target_ids[:-1]]
    fed, cache = 0, None
    for first in range(0, item.positions, most):
        count = min(most, item.positions - first)
        end = len(item.prompt_ids) + first + count - 1
        with torch.inference_mode():
            result = model(
                input_ids=torch.tensor([given[fed:end]]),
                cache=cache,
                use_cache=item.positions > most,
                logits_to_keep=count,
            )
        fed, cache = end, result.cache
        yield result.logits[0].float()
