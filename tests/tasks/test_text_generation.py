"""What text-generation reads, what it refuses and in which words, and how it measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import UsageError
from edgetune.tasks.text_generation import is_exact, load_items, measure, normalize

USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": " 4 "}


def data(folder: Path, *rows: Any) -> Path:
    """A JSON lines file; text rows go in as they are."""
    path = folder / "data.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_three_formats_of_trl(tmp_path: Path) -> None:
    chat, completion, turns, text = load_items(
        data(
            tmp_path,
            {"messages": [USER, ANSWER]},
            {"prompt": "2 + 2 =", "completion": " 4\n", "id": "ignored"},
            {"prompt": [USER], "completion": [ANSWER]},
            {"text": "a story"},
        )
    )
    assert (chat.kind, chat.prompt, chat.target, chat.answer) == ("chat", (USER,), " 4 ", "4")
    assert (completion.kind, completion.prompt) == ("completion", "2 + 2 =")
    assert (completion.target, completion.answer) == (" 4\n", "4")
    assert (turns.kind, turns.prompt, turns.answer) == ("chat", (USER,), "4")
    assert (text.kind, text.target, text.answer) == ("text", "a story", None)
    assert [item.id for item in (chat, completion, turns, text)] == ["1", "2", "3", "4"]


def test_every_assistant_turn_is_scored_and_the_last_one_is_the_answer(tmp_path: Path) -> None:
    second = {"role": "assistant", "content": "5"}
    rows = {"messages": [ANSWER, USER, ANSWER, USER, second, USER]}
    first, last = load_items(data(tmp_path, rows))
    assert first.prompt == (ANSWER, USER)
    assert (first.id, first.answer) == ("1/1", None)
    assert last.prompt == (ANSWER, USER, ANSWER, USER)
    assert (last.id, last.answer) == ("1/2", "5")


def test_of_a_completion_only_its_own_turns_are_scored(tmp_path: Path) -> None:
    (item,) = load_items(data(tmp_path, {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}))
    assert item.prompt == (USER, ANSWER, USER)


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two\\u2028more"}\r\n')
    assert [(item.id, item.target) for item in load_items(path)] == [
        ("1", "one"),
        ("3", "two\u2028more"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "cut', "not JSON"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ("null", "expected a JSON object, found null"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ("[" * 100_000, "not JSON"),
        ({}, "no `messages`, no `prompt` and `completion`, no `text` (found: nothing)"),
        ({"mesages": []}, "did you mean 'messages' for 'mesages'?"),  # codespell:ignore
        ({"conversations": []}, "did you mean 'messages' for 'conversations'?"),
        ({"prompts": "x", "completion": "y"}, "did you mean 'prompt' for 'prompts'?"),
        ({"prompt": "x", "response": "y"}, "did you mean 'completion' for 'response'?"),
        ({"prompt": "x"}, "`completion` is missing"),
        ({"text": 3}, "`text` must be text, found a number"),
        ({"text": "  "}, "`text` is empty"),
        ({"prompt": "x", "completion": " \n"}, "`completion` is empty"),
        ({"prompt": "", "completion": "y"}, "`prompt` is empty; for text without a prompt"),
        ({"prompt": 1, "completion": "y"}, "`prompt` is a number"),
        ({"prompt": [USER], "completion": "y"}, "`prompt` is a list"),
        ({"messages": "hello"}, "`messages` must be a list of messages, found text"),
        ({"messages": ["hello"]}, "turn 1: expected an object, found text"),
        ({"messages": [{"content": "x"}]}, "turn 1: `role` is missing"),
        ({"messages": [{"from": "user", "content": "x"}]}, "did you mean 'role' for 'from'?"),
        ({"messages": [USER, {"role": "assistant"}]}, "turn 2: `content` is missing"),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "turn 2: `content` must be text, found null",
        ),
        ({"messages": [USER]}, "no turn with role 'assistant'"),
        ({"messages": [ANSWER]}, "no turn with role 'assistant' after a first turn"),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            "turn 2: the assistant's answer is empty",
        ),
        ({"prompt": [USER], "completion": [USER]}, "no turn with role 'assistant'"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "`tools` would change the prompt"),
    ],
)
def test_an_unfit_row_is_refused_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = data(tmp_path, {"text": "fine"}, row)
    with pytest.raises(UsageError) as caught:
        load_items(path)
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"{path}:2: ")
    assert message in caught.value.message
    assert "`messages`" in caught.value.hint


def test_every_bad_line_is_named_up_to_five(tmp_path: Path) -> None:
    path = data(tmp_path, *[{"text": ""}] * 7)
    with pytest.raises(UsageError) as caught:
        load_items(path)
    lines = caught.value.message.splitlines()
    assert lines[4] == f"{path}:5: `text` is empty"
    assert lines[5:] == ["… and 2 more lines like these"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"\xff\xfe{", "not UTF-8 text (byte 0)"),
    ],
)
def test_a_file_without_items_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_items(path)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert caught.value.hint


def test_a_folder_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_items(tmp_path)


def test_exact_match_forgives_case_and_white_space_and_nothing_else() -> None:
    assert normalize("  Straße \n two\t") == "strasse two"
    assert is_exact("Yes,  it is", "yes, it\nis ")
    assert not is_exact("yes", "yes.")
    assert not is_exact("yes", "")


def test_measures_of_one_item() -> None:
    assert measure("4", " 4\n", [-1.0, -3.0]) == {"exact_match": 1.0, "answer_logprob": -2.0}
    assert measure("4", "5", [-1.0]) == {"exact_match": 0.0, "answer_logprob": -1.0}
    assert measure(None, None, [-1.0])["exact_match"] is None
    assert measure("4", None, []) == {"exact_match": None, "answer_logprob": None}
