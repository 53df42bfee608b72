"""Items as token ids: what is prompt, what is scored, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from edgetune.errors import UsageError
from edgetune.reference.render import ScoredItem, render_item, render_items, select
from edgetune.reference.tokenizer import encode_plain, encode_text
from edgetune.tasks.text_generation import Item

EOS = [259]


def chat(answer: str = "the answer", *turns: Mapping[str, Any]) -> Item:
    prompt = turns or ({"role": "user", "content": "hi"},)
    return Item("1", "data.jsonl:1", "chat", tuple(prompt), answer, answer)


def completion(prompt: str, answer: str) -> Item:
    return Item("1", "data.jsonl:1", "completion", prompt, answer, answer)


def text(value: str) -> Item:
    return Item("1", "data.jsonl:1", "text", "", value, None)


def test_of_a_chat_the_answer_and_its_end_are_scored(tokenizer: Any) -> None:
    item = render_item(chat(), tokenizer, EOS)
    assert item.prompt_text == "<|user|>hi<|end|><|assistant|>"
    assert list(item.prompt_ids) == encode_plain(tokenizer, item.prompt_text)
    assert tokenizer.decode(item.target_ids) == "the answer<|end|>"
    assert item.answer == "the answer"


def test_a_line_break_after_the_end_is_not_scored(tokenizer: Any) -> None:
    def rendered(template: str) -> str:
        tokenizer.chat_template = template
        return str(tokenizer.decode(render_item(chat(), tokenizer, EOS).target_ids))

    before = tokenizer.chat_template
    try:
        loop = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        prompt = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
        assert rendered(loop + prompt) == "the answer<|end|>"
        # as Phi-3 does: a second end-of-sequence token where no prompt follows
        assert rendered(loop + prompt + "{% if not add_generation_prompt %}<|end|>{% endif %}") == (
            "the answer<|end|>"
        )
        # a generation prompt that the answered chat does not begin with
        odd = "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
        assert rendered(loop + odd) == "the answer<|end|>"
    finally:
        tokenizer.chat_template = before


def test_of_a_completion_its_tokens_and_an_end_are_scored(tokenizer: Any) -> None:
    item = render_item(completion("is it", " in there"), tokenizer, EOS)
    assert tokenizer.decode(item.prompt_ids) == item.prompt_text == "is it"
    assert tokenizer.decode(item.target_ids) == " in there<|end|>"
    ended = render_item(completion("is it", " in<|end|>"), tokenizer, EOS)
    assert list(ended.target_ids).count(259) == 1


def test_a_prompt_is_tokenized_as_it_is_at_run_time(tokenizer: Any) -> None:
    # "t" + "he" would be the one token "the": the prompt's own tokens stay.
    item = render_item(completion("t", "he"), tokenizer, EOS)
    assert list(item.prompt_ids) == encode_text(tokenizer, "t")
    assert tokenizer.decode(item.target_ids) == "he<|end|>"
    assert list(item.prompt_ids + item.target_ids[:-1]) != encode_text(tokenizer, "the")


def test_text_is_scored_from_its_second_token_on(tokenizer: Any) -> None:
    item = render_item(text("there"), tokenizer, EOS)
    assert list(item.prompt_ids + item.target_ids) == encode_text(tokenizer, "there")
    assert len(item.prompt_ids) == 1
    assert item.prompt_text == ""


def test_a_beginning_of_sequence_token_is_given_and_not_scored(tokenizer: Any) -> None:
    class WithBos:
        """Puts 7 before and 8 after, as some tokenizers do."""

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return [7, *ids, 8] if add_special_tokens else ids

    assert encode_text(WithBos(), "there") == [7, *encode_plain(tokenizer, "there")]
    item = render_item(text("there"), WithBos(), EOS)
    assert item.prompt_ids == (7,)


def test_what_cannot_be_rendered_is_refused_with_its_place(tokenizer: Any) -> None:
    before = tokenizer.chat_template
    cases = [
        (text("a"), None, before, "a single token"),
        (chat("the " * 100), 64, before, "tokens, and the model takes 64"),
        (chat(), None, "{{ raise_exception('only two turns') }}", "only two turns"),
        (chat(), None, None, "no chat template"),
    ]
    for item, context, template, message in cases:
        tokenizer.chat_template = template
        try:
            with pytest.raises(UsageError, match=message) as caught:
                render_items([item], tokenizer, EOS, context)
        finally:
            tokenizer.chat_template = before
        assert caught.value.message.startswith("data.jsonl:1: ")
        assert caught.value.hint


def test_text_longer_than_the_context_is_cut(tokenizer: Any) -> None:
    (item,) = render_items([text("the " * 100)], tokenizer, EOS, 32)
    assert len(item.prompt_ids) + item.positions == 32


def scored(count: int) -> ScoredItem:
    return ScoredItem("1", (0,), tuple(range(count)), "", None)


def test_whole_items_are_taken_while_they_fit() -> None:
    items = [scored(3), scored(4), scored(2), scored(1)]
    assert select(items, 10) == tuple(items)
    assert select(items, 7) == tuple(items[:2])
    # order is kept: the third does not fit, so the fourth is not tried
    assert select(items, 8) == tuple(items[:2])
    (cut,) = select(items, 2)
    assert cut.target_ids == (0, 1)
    assert select([], 10) == ()
