"""A package whose tokenizer was changed after the build fails, in one clear sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.report.markdown import to_markdown
from edgetune.report.terminal import summary_lines
from edgetune.runtime.session import open_package
from edgetune.validate import rounds
from edgetune.validate.package import exit_code_of, validate_package
from edgetune.validate.self_test import load_self_test
from edgetune.validate.tokenizer_parity import tokenizer_parity
from tests.report.sample import make
from tests.tiny_package import VARIANT, copy_of, sign

pytestmark = pytest.mark.line


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BLOCK_S", 0.005)
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    monkeypatch.setattr(rounds, "MOST_LAUNCHES", 1)
    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)


def _json(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
        change(value)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")

    return spoil


def _newline(folder: Path) -> None:
    place = folder / "chat_template.jinja"
    text = place.read_text(encoding="utf-8")
    assert "<|end|>{%" in text
    # A trailing newline of the file itself is none of the template's: Jinja leaves it out.
    place.write_text(text.replace("<|end|>{%", "<|end|>\n{%", 1), encoding="utf-8")


def _without_end_token(value: dict[str, Any]) -> None:
    kept = [token for token in value["added_tokens"] if token["content"] != "<|end|>"]
    assert len(kept) == len(value["added_tokens"]) - 1
    value["added_tokens"] = kept


def _end_token_shown(value: dict[str, Any]) -> None:
    for token in value["added_tokens"]:
        if token["content"] == "<|end|>":
            token["special"] = False


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_newline, "chat template: 1 of 1 differ, first difference at character"),
        (
            _json("tokenizer.json", _without_end_token),
            "tokens of a rendered chat: 1 of 1 differ, first difference at token",
        ),
        (
            _json("tokenizer.json", _end_token_shown),
            "special tokens: 1 of",
        ),
        (
            _json("tokenizer_config.json", lambda v: v.update(eos_token="<|user|>")),
            "special tokens: 1 of",
        ),
        (
            _json("genai_config.json", lambda v: v["model"].update(eos_token_id=[1, 259])),
            "tokens that end an answer: 1 of 1 differ, first difference at token 0: "
            "expected [259], found [1, 259]",
        ),
        (
            _json("genai_config.json", lambda v: v["search"].update(temperature=0.1)),
            "generation settings: 1 of 9 differ, of 'temperature': expected 1.0, found 0.1",
        ),
    ],
)
def test_a_change_is_named(
    package: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    changed = copy_of(package, tmp_path / "changed")
    spoil(changed / VARIANT)
    sign(changed)
    section = tokenizer_parity(open_package(changed), load_self_test(changed / "self_test"))
    report = make(tokenizer=section)
    assert report["verdict"] == "fail"
    (line,) = [line for line in summary_lines(report) if "the tokenizer differs" in line]
    assert words in line


def test_one_newline_more_fails_the_validation(package: Path, tmp_path: Path) -> None:
    changed = copy_of(package, tmp_path / "changed")
    _newline(changed / VARIANT)
    sign(changed)
    report = validate_package(changed, "generic-x86-64")
    assert report["verdict"] == "fail"
    assert exit_code_of(report) == 1
    assert [c["name"] for c in report["checks"] if c["verdict"] == "fail"] == ["tokenizer_parity"]
    assert "What was lost" in to_markdown(report)
