"""Items of a task as token ids: what the model is given, and what it is scored on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.errors import UsageError
from edgetune.reference.tokenizer import encode_plain, encode_text, render_chat
from edgetune.tasks.text_generation import Item

# Enough for tight intervals; more would cost time, and disk: positions × vocabulary × 4 bytes.
MOST_POSITIONS = 8192
_MOST_BYTES = 2_500_000_000


@dataclass(frozen=True)
class ScoredItem:
    """A prompt and the tokens scored after it, teacher-forced."""

    id: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    # The rendered prompt; empty where the text itself is scored.
    prompt_text: str
    answer: str | None

    @property
    def positions(self) -> int:
        """How many tokens are scored."""
        return len(self.target_ids)


def render_items(
    items: Sequence[Item],
    tokenizer: Any,
    eos: Collection[int],
    context: int | None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[ScoredItem]:
    """Every item as token ids. Raises UsageError, with the item's place, for an item that the
    chat template refuses, that is a single token, or that is longer than the model's context.
    """
    rendered = []
    for number, item in enumerate(items, 1):
        try:
            scored = render_item(item, tokenizer, eos)
            rendered.append(_fit(scored, item.kind == "text", context))
        except UsageError as why:
            msg = f"{item.place}: {why.message}"
            raise UsageError(msg, why.hint) from why
        if number % 100 == 0:
            progress(f"tokens of item {number} of {len(items)}")
    return rendered


def render_item(item: Item, tokenizer: Any, eos: Collection[int]) -> ScoredItem:
    """One item as token ids. `eos`: the tokens that end an answer."""
    if item.kind == "text":
        return text_item(item.id, item.target, tokenizer)
    if isinstance(item.prompt, str):
        prompt_text, prompt = item.prompt, encode_text(tokenizer, item.prompt)
        joint = encode_text(tokenizer, item.prompt + item.target)
        target = _after(prompt, joint) or encode_plain(tokenizer, item.target)
        target = _ended(target, tokenizer, eos)
    else:
        prompt_text = render_chat(tokenizer, item.prompt, add_generation_prompt=True)
        prompt = encode_plain(tokenizer, prompt_text)
        turns = (*item.prompt, {"role": "assistant", "content": item.target})
        whole = render_chat(tokenizer, turns, add_generation_prompt=False)
        if whole.startswith(prompt_text) and len(whole) > len(prompt_text):
            rest = encode_plain(tokenizer, whole[len(prompt_text) :])
            target = _after(prompt, encode_plain(tokenizer, whole)) or rest
            target = _through_first(target, eos)
        else:
            # A template whose generation prompt is no prefix of the answered chat: the answer
            # is scored as a model that was asked so would give it.
            target = _ended(encode_plain(tokenizer, item.target), tokenizer, eos)
    return ScoredItem(item.id, tuple(prompt), tuple(target), prompt_text, item.answer)


def text_item(identifier: str, text: str, tokenizer: Any) -> ScoredItem:
    """Plain text, scored from its second token on. Raises UsageError for a single token."""
    ids = encode_text(tokenizer, text)
    if len(ids) < 2:
        msg = "the text is a single token, there is nothing to predict"
        raise UsageError(msg, "leave this item out, or make it longer")
    return ScoredItem(identifier, (ids[0],), tuple(ids[1:]), "", None)


def most_positions(vocabulary: int) -> int:
    """How many positions are scored at most: fewer where a large vocabulary fills the disk.

    >>> most_positions(32_000), most_positions(151_936)
    (8192, 4113)
    """
    return min(MOST_POSITIONS, _MOST_BYTES // (4 * vocabulary))


def select(items: Sequence[ScoredItem], most: int) -> tuple[ScoredItem, ...]:
    """Whole items from the first on while their positions fit; a first item that alone is too
    long is cut."""
    chosen: list[ScoredItem] = []
    left = most
    for item in items:
        if item.positions > left:
            break
        chosen.append(item)
        left -= item.positions
    if items and not chosen:
        chosen.append(_cut(items[0], most))
    return tuple(chosen)


def _after(prompt: list[int], joint: list[int]) -> list[int]:
    """What follows the prompt's tokens; nothing where joint tokens begin with others."""
    return joint[len(prompt) :] if joint[: len(prompt)] == prompt else []


def _through_first(ids: list[int], eos: Collection[int]) -> list[int]:
    """The ids up to and with the first that ends an answer: generation would stop there, and a
    line break that a template writes after it is nothing the model says."""
    for position, token in enumerate(ids):
        if token in eos:
            return ids[: position + 1]
    return ids


def _ended(ids: list[int], tokenizer: Any, eos: Collection[int]) -> list[int]:
    """The ids with an end-of-sequence token, as TRL trains on completions."""
    if ids and ids[-1] in eos:
        return ids
    own = tokenizer.eos_token_id
    return [*ids, own if own is not None else min(eos)]


def _fit(item: ScoredItem, may_cut: bool, context: int | None) -> ScoredItem:
    length = len(item.prompt_ids) + item.positions
    if not item.target_ids:
        msg = "no token is left to score"
        raise UsageError(msg, "check the answer and the base's chat template")
    if context is None or length <= context:
        return item
    if may_cut:
        return _cut(item, context - len(item.prompt_ids))
    msg = f"{length} tokens, and the model takes {context}"
    raise UsageError(msg, "shorten the item or leave it out")


def _cut(item: ScoredItem, positions: int) -> ScoredItem:
    target = item.target_ids[:positions]
    return ScoredItem(item.id, item.prompt_ids, target, item.prompt_text, item.answer)
