"""What is scored without evaluation data: what the trained model itself says, and built-in text.

Samples show the model where it lives: a fine-tune that answers in its own way is measured on such
answers. The built-in text shows it where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from edgetune.errors import UsageError
from edgetune.reference.builtin_text import OPENINGS, PARAGRAPHS, QUESTIONS
from edgetune.reference.generation import sample
from edgetune.reference.render import ScoredItem, text_item
from edgetune.reference.tokenizer import encode_plain, encode_text, has_template, render_chat

SOURCE = "sampled and built-in text"
NEW_TOKENS = 64


def own_items(
    model: Any,
    tokenizer: Any,
    eos: Collection[int],
    context: int | None,
    seed: int,
    progress: Callable[[str], None],
) -> list[ScoredItem]:
    """24 samples of at most 64 tokens at temperature 1, then the built-in paragraphs.

    The samples follow 12 openings and, where the model has a chat template, 12 questions; without
    one the openings are used twice.
    """
    prompts = make_prompts(tokenizer)
    longest = max(len(ids) for _, ids in prompts)
    new_tokens = NEW_TOKENS if context is None else min(NEW_TOKENS, context - longest)
    if new_tokens < 1:
        msg = f"a context of {context} tokens leaves no room for text to be measured on"
        raise UsageError(msg, "name evaluation data that fits with --data FILE.jsonl")
    samples = sample(
        model,
        [ids for _, ids in prompts],
        eos,
        new_tokens,
        seed,
        lambda done: progress(f"trained model: sample {done} of {len(prompts)}"),
    )
    items = [
        ScoredItem(f"sample/{number}", tuple(ids), tuple(answer), text, None)
        for number, ((text, ids), answer) in enumerate(zip(prompts, samples, strict=True), 1)
    ]
    for number, paragraph in enumerate(PARAGRAPHS, 1):
        item = text_item(f"text/{number}", paragraph, tokenizer)
        most = item.positions if context is None else context - 1
        cut = item.target_ids[:most]
        items.append(ScoredItem(item.id, item.prompt_ids, cut, "", None))
    return items


def make_prompts(tokenizer: Any) -> list[tuple[str, list[int]]]:
    """(text, ids) of what samples follow: openings, and questions where there is a template."""
    openings = [(text, encode_text(tokenizer, text)) for text in OPENINGS]
    if not has_template(tokenizer):
        return openings * 2
    chats = []
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        text = render_chat(tokenizer, turns, add_generation_prompt=True)
        chats.append((text, encode_plain(tokenizer, text)))
    return openings + chats
