"""Calibration and evaluation data are kept apart, and thin data is said to be thin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.recipe import Tolerances
from edgetune.sources.data import DataFile, data_warnings, overlap_problem, read_data
from edgetune.statistics import items_needed, paired_proportions


def _file(path: Path, prompts: list[str]) -> DataFile:
    rows = [json.dumps({"prompt": text, "completion": f"yes {text[::-1]}"}) for text in prompts]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = read_data("text-generation", str(path), "evaluation")
    assert found is not None
    return found


def _numbered(count: int) -> list[str]:
    return [f"item {n * n} of {n}" for n in range(count)]


def test_rows_in_both_files_are_a_problem_that_names_both_lines(tmp_path: Path) -> None:
    evaluation = _file(tmp_path / "e.jsonl", ["one item here", "two", "three of them"])
    calibration = _file(tmp_path / "c.jsonl", ["four", "five", "Three of  them!"])
    problem = overlap_problem(evaluation, calibration)
    assert problem is not None
    assert problem.exit_code == 2
    assert problem.message == (
        f"{tmp_path}/e.jsonl: 1 of 3 rows of the evaluation data are in the calibration data too: "
        f"line 3 is line 3 of {tmp_path}/c.jsonl"
    )
    assert "take these rows out" in problem.hint


def test_many_rows_are_counted_and_five_named(tmp_path: Path) -> None:
    evaluation = _file(tmp_path / "e.jsonl", _numbered(20))
    problem = overlap_problem(evaluation, evaluation)
    assert problem is not None
    assert "20 of 20 rows" in problem.message
    assert problem.message.endswith("line 5 is line 5 and 15 more")


def test_files_apart_are_no_problem(tmp_path: Path) -> None:
    evaluation = _file(tmp_path / "e.jsonl", ["one item here", "two"])
    assert overlap_problem(evaluation, _file(tmp_path / "c.jsonl", ["three", "four"])) is None


def test_a_chat_is_compared_whole_and_without_its_system_turn(tmp_path: Path) -> None:
    def chats(path: Path, *turns: list[str]) -> DataFile:
        names = ("system", "user", "assistant", "user", "assistant")
        rows = [
            {"messages": [{"role": r, "content": c} for r, c in zip(names, turn, strict=True)]}
            for turn in turns
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found = read_data("text-generation", str(path), "evaluation")
        assert found is not None
        return found

    mine = chats(tmp_path / "e.jsonl", ["be brief", "hi", "ho", "what now", "nothing"])
    assert mine.texts == {1: "hi\nho\nwhat now\nnothing"}
    again = chats(tmp_path / "c.jsonl", ["be long", "Hi", "Ho", "What now?", "Nothing"])
    assert overlap_problem(mine, again) is not None
    other = chats(tmp_path / "d.jsonl", ["be brief", "hi", "ho", "and then", "something"])
    assert overlap_problem(mine, other) is None


def test_repeats_are_warned_of(tmp_path: Path) -> None:
    prompts = [*_numbered(140), "item 9 of 3", "ITEM 16 of 4"]
    (warning,) = data_warnings(_file(tmp_path / "e.jsonl", prompts), Tolerances())
    assert "2 of 142 rows repeat earlier ones: line 141 is line 4, line 142 is line 5" in warning
    assert "narrower" in warning


def test_too_few_items_say_how_many_it_takes(tmp_path: Path) -> None:
    few = _file(tmp_path / "e.jsonl", _numbered(40))
    (warning,) = data_warnings(few, Tolerances(task_metric_drop=0.02))
    assert "40 items with an expected answer cannot exclude a loss of 2 points" in warning
    assert f"takes {items_needed(0.02)} when" in warning
    # What the warning says is what the check will find.
    assert paired_proportions(0, 0, 40).low < -0.02
    assert paired_proportions(0, 0, items_needed(0.02)).low >= -0.02
    assert list(data_warnings(few, Tolerances(task_metric_drop=0.1))) == []
    assert list(data_warnings(few, Tolerances(task_metric_drop=None))) == []
    (warning,) = data_warnings(_file(tmp_path / "f.jsonl", _numbered(4)), Tolerances())
    assert "4 items are too few to decide anything, 5 are the least" in warning


def test_text_without_answers_needs_no_number_of_answers(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [json.dumps({"text": f"some text {n * n}"}) for n in range(6)]
    path.write_text("\n".join(rows), encoding="utf-8")
    found = read_data("text-generation", str(path), "evaluation")
    assert found is not None
    assert list(data_warnings(found, Tolerances())) == []


@pytest.mark.parametrize("role", ["evaluation", "calibration"])
def test_a_file_that_is_not_there_is_named_with_its_role(role: str, tmp_path: Path) -> None:
    from edgetune.errors import UsageError

    with pytest.raises(UsageError, match=rf"{role} data: .*no such file"):
        read_data("text-generation", str(tmp_path / "none.jsonl"), role)
