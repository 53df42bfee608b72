"""text-generation: a prompt goes in, text comes out.

Data rows in TRL's formats, by the fields they have:

* `messages`: a chat. Every assistant turn is scored, given all that precedes it; the last one is
  the expected answer. What follows the last assistant turn is ignored.
* `prompt` and `completion`, both text or both lists of messages: the completion is scored and is
  the expected answer.
* `text`: the whole text is scored; there is no answer to expect.

Metrics: exact match of the normalized greedy answer, and the mean log-probability of the target's
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgetune.errors import UsageError
from edgetune.tasks._rows import Row, did_you_mean, kind_of, read_items

FORM = "decoder"
AUTO_MODEL = "AutoModelForCausalLM"
HIGHER_IS_BETTER: Mapping[str, bool] = {"exact_match": True, "answer_logprob": True}

FIELDS = ("messages", "prompt", "completion", "text")
_OTHER_NAMES = {
    "messages": ("conversation", "conversations", "chat", "turns", "dialogue"),
    "prompt": ("instruction", "question", "input", "query", "context"),
    "completion": ("response", "answer", "output", "answers", "target", "label", "reply"),
    "text": ("content", "document", "sentence"),
}
_HINT = "an item has `messages`, or `prompt` and `completion`, or `text` (TRL's formats)"

_SYSTEM = ("system", "developer")

# A turn: `role`, `content` and whatever else the chat template reads.
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One stretch of text to score, and what stands before it."""

    id: str
    # file:line, for messages; it enters no result.
    place: str
    kind: Literal["text", "completion", "chat"]
    # What precedes the target: nothing, text, or the turns of a chat.
    prompt: str | tuple[Message, ...]
    # The text whose tokens are scored; of a chat, the content of one assistant turn.
    target: str
    # What a greedy answer is compared with; null where the item only asks for a score.
    answer: str | None


def load_items(path: Path) -> list[Item]:
    """The items of a JSON lines file, in order; ids are line numbers, `<line>/<turn>` for the
    turns of a chat with several assistant turns.

    Raises UsageError naming file:line for what is not JSON, lacks fields, is of a wrong type or
    has an empty answer.
    """
    return read_items(path, _parse, _HINT)


def texts(items: Sequence[Item]) -> dict[int, str]:
    """{line: all that a row says}, for comparing rows: system turns, which rows share, left out."""
    found: dict[int, str] = {}
    for item in items:
        before = item.prompt
        if not isinstance(before, str):
            before = "\n".join(turn["content"] for turn in before if turn["role"] not in _SYSTEM)
        # Of a chat with several answers the last one holds all that stands before it.
        found[int(item.id.split("/")[0])] = f"{before}\n{item.target}"
    return found


def normalize(text: str) -> str:
    """Text as exact match compares it: white space collapsed, case folded."""
    return " ".join(text.split()).casefold()


def is_exact(expected: str, answer: str) -> bool:
    """Whether an answer is the expected one, both normalized."""
    return normalize(expected) == normalize(answer)


def measure(
    expected: str | None, answer: str | None, target_logprobs: Sequence[float]
) -> dict[str, float | None]:
    """{metric: value of one item}; exact_match is 0 or 1, null where nothing is expected.

    `target_logprobs`: log-probability in nats of each target token, the prompt and the tokens
    before it given.
    """
    exact = None if expected is None or answer is None else float(is_exact(expected, answer))
    mean = math.fsum(target_logprobs) / len(target_logprobs) if len(target_logprobs) else None
    return {"exact_match": exact, "answer_logprob": mean}


def _parse(row: Row, place: str, line: int) -> list[Item]:
    if row.get("tools"):
        raise _refusal(place, "`tools` would change the prompt and are not supported")
    if "messages" in row:
        return _chat_items(_messages(row["messages"], place, "messages"), 0, place, line)
    if "prompt" in row or "completion" in row:
        return _completion_items(row, place, line)
    if "text" in row:
        text = row["text"]
        if not isinstance(text, str):
            raise _refusal(place, f"`text` must be text, found {kind_of(text)}")
        if not text.strip():
            raise _refusal(place, "`text` is empty")
        return [Item(str(line), place, "text", "", text, None)]
    meant = (did_you_mean(field, row, FIELDS, _OTHER_NAMES) for field in FIELDS)
    found = ", ".join(sorted(row)) or "nothing"
    raise _refusal(
        place,
        f"no `messages`, no `prompt` and `completion`, no `text` (found: {found})"
        + next((text for text in meant if text), ""),
    )


def _completion_items(row: Row, place: str, line: int) -> list[Item]:
    for field in ("prompt", "completion"):
        if field not in row:
            meant = did_you_mean(field, row, FIELDS, _OTHER_NAMES)
            raise _refusal(place, f"`{field}` is missing{meant}")
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _messages(prompt, place, "prompt")
        after = _messages(completion, place, "completion")
        return _chat_items((*before, *after), len(before), place, line)
    for field in ("prompt", "completion"):
        if not isinstance(row[field], str):
            kind = kind_of(row[field])
            both = "`prompt` and `completion` must both be text or both be lists of messages"
            raise _refusal(place, f"{both}, `{field}` is {kind}")
    if not prompt.strip():
        raise _refusal(place, "`prompt` is empty; for text without a prompt use `text`")
    if not completion.strip():
        raise _refusal(place, "`completion` is empty, there is no answer to score")
    return [Item(str(line), place, "completion", prompt, completion, completion.strip())]


def _messages(value: Any, place: str, field: str) -> tuple[Message, ...]:
    """A list of turns, each with a role and text."""
    if not isinstance(value, list):
        raise _refusal(place, f"`{field}` must be a list of messages, found {kind_of(value)}")
    turns: list[Message] = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise _refusal(
                place, f"`{field}`, turn {number}: expected an object, found {kind_of(turn)}"
            )
        for key in ("role", "content"):
            if key not in turn:
                other = {"role": ("from",), "content": ("value", "text")}
                meant = did_you_mean(key, turn, ("role", "content"), other)
                raise _refusal(place, f"`{field}`, turn {number}: `{key}` is missing{meant}")
            if not isinstance(turn[key], str):
                kind = kind_of(turn[key])
                raise _refusal(
                    place, f"`{field}`, turn {number}: `{key}` must be text, found {kind}"
                )
        turns.append(turn)
    return tuple(turns)


def _chat_items(turns: tuple[Message, ...], first: int, place: str, line: int) -> list[Item]:
    """An item for each assistant turn from `first` on that has something before it."""
    scored = [n for n in range(max(first, 1), len(turns)) if turns[n]["role"] == "assistant"]
    if not scored:
        raise _refusal(
            place, "no turn with role 'assistant' after a first turn, there is no answer"
        )
    for n in scored:
        if not turns[n]["content"].strip():
            raise _refusal(place, f"turn {n + 1}: the assistant's answer is empty")
    return [
        Item(
            id=str(line) if len(scored) == 1 else f"{line}/{count}",
            place=place,
            kind="chat",
            prompt=turns[:n],
            target=turns[n]["content"],
            answer=turns[n]["content"].strip() if n == scored[-1] else None,
        )
        for count, n in enumerate(scored, 1)
    ]


def _refusal(place: str, what: str) -> UsageError:
    return UsageError(f"{place}: {what}", _HINT)
