"""Runs an opened decoder: answers and scores, through the path that ships.

A shipped graph gives logits of the last position only (`prune_lm_head`), so scored tokens are fed
one at a time: that checks the decode path itself, its key-value cache and window included.

A LongRoPE model (Phi-3 128k, Phi-4-mini) rotates with other tables once it has read more than 4096
tokens, so that all it has in its cache must be computed again. onnxruntime-genai does that when it
generates (for the types and the length below, written into it), as `generate` of transformers does,
and does not when tokens are appended: here it is done then, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.errors import UsageError
from edgetune.runtime.session import OpenPackage

Floats = npt.NDArray[np.float32]

_SWITCHING_TYPES = ("phi3",)
SWITCH_LENGTH = 4096


def generate(opened: OpenPackage, prompt_ids: Sequence[int], max_new_tokens: int) -> Iterator[int]:
    """The greedy answer's tokens, one by one, without the token that ends it.

    Raises UsageError when the prompt leaves no room for an answer.
    """
    room = opened.context_length - len(prompt_ids)
    if not prompt_ids or room < 1:
        msg = f"the prompt has {len(prompt_ids)} tokens, the model takes 1 to "
        msg += f"{opened.context_length - 1}"
        raise UsageError(msg, "give a shorter prompt" if prompt_ids else "give a prompt")
    steps = min(max_new_tokens, room)
    generator = start(opened, prompt_ids, len(prompt_ids) + steps)
    ends = set(opened.eos_token_ids)
    for _ in range(steps):
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
        if token in ends:
            return
        yield token


def score(opened: OpenPackage, prompt_ids: Sequence[int], target_ids: Sequence[int]) -> Floats:
    """Log-softmax over the whole vocabulary at each target token, teacher-forced: [T, V] in nats.

    Row t is the distribution of target t, given the prompt and the targets before it. Rows are
    NaN where the model's logits are not finite.
    """
    generator = start(opened, prompt_ids, len(prompt_ids) + len(target_ids))
    return _score(opened, generator, target_ids)


def score_and_answer(
    opened: OpenPackage,
    prompt_ids: Sequence[int],
    target_ids: Sequence[int],
    max_new_tokens: int,
) -> tuple[Floats, list[int]]:
    """`score` and `generate` in one go: ([T, V] log-probabilities, the greedy answer's tokens).

    The greedy answer is the target up to the first token where the model would have chosen
    another; only from there on anything is computed again. The same tokens go through the same
    graph one at a time, so both results are what the two functions give.
    """
    room = opened.context_length - len(prompt_ids)
    steps = min(max_new_tokens, room)
    generator = start(opened, prompt_ids, len(prompt_ids) + max(len(target_ids), steps))
    logprobs = _score(opened, generator, target_ids)
    choices = np.argmax(logprobs, axis=1)
    ends = set(opened.eos_token_ids)
    answer: list[int] = []
    for choice, target in zip(choices.tolist(), target_ids, strict=True):
        if choice in ends or len(answer) == steps:
            return logprobs, answer
        answer.append(choice)
        if choice != target:
            break
    generator = _branch(opened, generator, prompt_ids, answer[:-1], steps)
    while len(answer) < steps:
        append(opened, generator, answer[-1])
        choice = int(np.argmax(generator.get_logits()[0, -1]))
        if choice in ends:
            break
        answer.append(choice)
    return logprobs, answer


def start(opened: OpenPackage, prompt_ids: Sequence[int], length: int, min_length: int = 0) -> Any:
    """A greedy generator that has read the prompt, with room for `length` tokens in all.

    No token ends the answer before `min_length` tokens in all.
    """
    import onnxruntime_genai as og

    # A sliding-window cache that cannot hold its window is refused when it is made.
    length = min(max(length, _window(opened)), opened.context_length)
    parameters = og.GeneratorParams(opened.model)
    parameters.set_search_options(
        max_length=length,
        min_length=min_length,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
    )
    generator = og.Generator(opened.model, parameters)
    generator.append_tokens(np.array([prompt_ids], dtype=np.int32))
    return generator


def append(opened: OpenPackage, generator: Any, token: int) -> None:
    """Let a generator of `start` read one more token; see the module's docstring."""
    tokens = [token]
    switches = opened.config["model"].get("type") in _SWITCHING_TYPES
    if switches and generator.token_count() == SWITCH_LENGTH < opened.context_length:
        tokens = [*generator.get_sequence(0).tolist(), token]
        generator.rewind_to(0)
    generator.append_tokens(np.array([tokens], dtype=np.int32))


def _branch(
    opened: OpenPackage,
    generator: Any,
    prompt_ids: Sequence[int],
    answer: Sequence[int],
    steps: int,
) -> Any:
    """The generator as it was after prompt and answer, other tokens that it read forgotten."""
    length = len(prompt_ids) + len(answer)
    switched = generator.token_count() > SWITCH_LENGTH >= length
    if not _window(opened) and not switched:
        generator.rewind_to(length)
        return generator
    # A cache that slid on, or was rotated anew, has dropped what it would have to go back to.
    again = start(opened, prompt_ids, len(prompt_ids) + steps)
    for token in answer:
        append(opened, again, token)
    return again


def _window(opened: OpenPackage) -> int:
    settings = opened.config["model"]["decoder"].get("sliding_window") or {}
    return int(settings.get("window_size") or 0)


def _score(opened: OpenPackage, generator: Any, target_ids: Sequence[int]) -> Floats:
    rows = []
    for number in range(len(target_ids)):
        if number:
            append(opened, generator, target_ids[number - 1])
        rows.append(log_softmax(np.asarray(generator.get_logits())[0, -1]))
    return np.stack(rows)


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """Log-probabilities in nats of logits [V], computed in float64; NaN when one is not finite."""
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        return np.full(values.shape, np.nan, dtype=np.float32)
    values -= values.max()
    logprobs: Floats = (values - np.log(np.exp(values).sum())).astype(np.float32)
    return logprobs
