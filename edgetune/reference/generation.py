"""A plain decoding loop: greedy answers, and seeded samples, with a key-value cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from edgetune.reference.scoring import switch_length

_BATCH = 16
Choose = Callable[[Tensor], Tensor]


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    eos: Collection[int],
    most_new: Callable[[int], int],
    progress: Callable[[int], None],
) -> list[list[int]]:
    """The greedy continuation of each prompt, without the token that ended it.

    `most_new(prompt length)`: how many tokens at most. `progress` gets the number done.
    """
    answers = _decode(model, prompts, eos, most_new, lambda logits: logits.argmax(-1), progress)
    return [answer[:-1] if answer and answer[-1] in eos else answer for answer in answers]


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    eos: Collection[int],
    new_tokens: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[list[int]]:
    """A continuation of each prompt drawn at temperature 1; the token that ended it stays."""
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> Tensor:
        weights = torch.softmax(logits.double(), -1)
        return torch.multinomial(weights, 1, generator=generator)[:, 0]

    return _decode(model, prompts, eos, lambda _: new_tokens, choose, progress)


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    eos: Collection[int],
    most_new: Callable[[int], int],
    choose: Choose,
    progress: Callable[[int], None],
) -> list[list[int]]:
    """Continue every prompt. Prompts of one length share a batch, so that nothing is padded."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        by_length[len(prompt)].append(number)
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    for length, numbers in sorted(by_length.items()):
        for first in range(0, len(numbers), _BATCH):
            batch = numbers[first : first + _BATCH]
            rows = torch.tensor([list(prompts[n]) for n in batch])
            found = _decode_batch(model, rows, eos, most_new(length), choose)
            for number, answer in zip(batch, found, strict=True):
                answers[number] = answer
            done += len(batch)
            progress(done)
    return answers


def _decode_batch(
    model: Any, rows: Tensor, eos: Collection[int], most_new: int, choose: Choose
) -> list[list[int]]:
    """New tokens of each row [batch, length], up to and with the one that ends it."""
    answers: list[list[int]] = [[] for _ in range(rows.shape[0])]
    running = set(range(rows.shape[0]))
    given, cache = rows, None
    switch = switch_length(model)
    with torch.inference_mode():
        for _ in range(most_new):
            result = model(input_ids=given, cache=cache, use_cache=True, logits_to_keep=1)
            cache = result.cache
            chosen = choose(result.logits[:, -1].float())
            for number in sorted(running):
                token = int(chosen[number])
                answers[number].append(token)
                if token in eos:
                    running.discard(number)
            if not running:
                break
            given = chosen[:, None]
            if switch is not None:
                rows = torch.cat([rows, given], 1)
                if rows.shape[1] == switch + 1:
                    given, cache = rows, None
    return answers
