"""Logits of a causal language model at the scored positions, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
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


def switch_length(model: Any) -> int | None:
    """How many tokens a LongRoPE model reads before it rotates all of them with other tables;
    null for every other model.

    What its cache holds is then of no use any more; `generate` of transformers drops it, and so
    must whoever calls the model itself.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return int(rope["original_max_position_embeddings"])


def _logits_of(model: Any, item: ScoredItem) -> Iterator[Tensor]:
    """The item's logits in parts of at most `_MOST_LOGITS` values."""
    most = max(1, _MOST_LOGITS // vocabulary_size(model))
    given = [*item.prompt_ids, *item.target_ids[:-1]]
    switch = switch_length(model)
    fed, cache = 0, None
    for first, last in _parts(item, most, switch):
        count = last - first
        end = len(item.prompt_ids) + last - 1
        if switch is not None and fed <= switch < end:
            fed, cache = 0, None
        with torch.inference_mode():
            result = model(
                input_ids=torch.tensor([given[fed:end]]),
                cache=cache,
                use_cache=item.positions > most,
                logits_to_keep=count,
            )
        fed, cache = end, result.cache
        yield result.logits[0].float()


def _parts(item: ScoredItem, most: int, switch: int | None) -> Iterator[tuple[int, int]]:
    """(first, last) of parts of at most `most` positions; none holds positions on both sides of
    the switch. Position p is predicted from the prompt and p targets."""
    edges = [0, item.positions]
    if switch is not None and 0 < switch + 1 - len(item.prompt_ids) < item.positions:
        edges.insert(1, switch + 1 - len(item.prompt_ids))
    for begin, end in pairwise(edges):
        for first in range(begin, end, most):
            yield first, min(first + most, end)
