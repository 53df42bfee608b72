"""Generation settings, end-of-sequence tokens and chat template are the checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import StepFailedError
from edgetune.files import read_json
from edgetune.optimize.genai_folder import (
    chat_template_of,
    complete_folder,
    not_carried,
    settle_generation,
    tokenizer_end_token,
)

CONFIG = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def built() -> dict[str, Any]:
    """A genai_config.json as the builder writes it, shortened."""
    return {
        "model": {
            "bos_token_id": 1,
            "context_length": 256,
            "eos_token_id": [7, 2],
            "pad_token_id": 2,
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "max_length": 256,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def write(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_bytes(text.encode())


def test_end_tokens_are_the_checkpoints_and_the_tokenizers_own() -> None:
    genai = built()
    changed = settle_generation(genai, CONFIG, {"eos_token_id": [2, 9]}, 9)
    assert genai["model"]["eos_token_id"] == [2, 9]
    assert changed["eos_token_id"] == [[7, 2], [2, 9]]
    settle_generation(genai, CONFIG, {}, 7)
    assert genai["model"]["eos_token_id"] == [2, 7]
    settle_generation(genai, CONFIG, {}, None)
    assert genai["model"]["eos_token_id"] == 2


def test_an_order_of_end_tokens_is_no_change() -> None:
    assert "eos_token_id" not in settle_generation(built(), CONFIG, {}, 7)


@pytest.mark.parametrize("named", ["</s>", {"content": "</s>", "lstrip": False}])
@pytest.mark.parametrize(
    "tokenizer",
    [
        {"added_tokens": [{"id": 5, "content": "</s>"}], "model": {"vocab": {"</s>": 4}}},
        {"model": {"vocab": {"</s>": 5}}},
    ],
)
def test_the_tokenizers_own_end_token(tmp_path: Path, named: Any, tokenizer: Any) -> None:
    write(tmp_path, "tokenizer_config.json", {"eos_token": named})
    write(tmp_path, "tokenizer.json", tokenizer)
    assert tokenizer_end_token(tmp_path) == 5
    write(tmp_path, "tokenizer_config.json", {"eos_token": None})
    assert tokenizer_end_token(tmp_path) is None


def test_a_token_that_is_stated_nowhere_stays_the_tokenizers() -> None:
    genai = built()
    settle_generation(genai, {}, {}, 7)
    assert genai["model"]["eos_token_id"] == [7, 2]
    assert genai["model"]["pad_token_id"] == 2


def test_settings_are_stated_ones_then_transformers_defaults() -> None:
    genai = built()
    stated = {"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.1, "top_k": None}
    changed = settle_generation(genai, CONFIG, stated, None)
    search = genai["search"]
    assert (search["do_sample"], search["temperature"], search["top_k"]) == (True, 0.6, 50)
    # The builder does not read it from generation_config.json at all.
    assert changed["repetition_penalty"] == [1.0, 1.1]
    assert search["early_stopping"] is False
    assert search["past_present_share_buffer"] is True


def test_settings_in_config_json_count_only_without_generation_config() -> None:
    old = {**CONFIG, "do_sample": True}
    genai = built()
    settle_generation(genai, old, {}, None)
    assert genai["search"]["do_sample"] is True
    settle_generation(genai, old, {"temperature": 0.7}, None)
    assert genai["search"]["do_sample"] is False


@pytest.mark.parametrize(("stated", "length"), [({}, 256), ({"max_length": 100}, 100)])
def test_length(stated: dict[str, Any], length: int) -> None:
    genai = built()
    settle_generation(genai, CONFIG, stated, None)
    assert genai["search"]["max_length"] == length
    settle_generation(genai, CONFIG, {"max_length": 10**6}, None)
    assert genai["search"]["max_length"] == 256


def test_settings_that_are_not_known_are_named() -> None:
    stated = {"min_p": 0.1, "suppress_tokens": [3], "bad_words_ids": None, "use_cache": True}
    assert not_carried({**stated, "top_p": 0.9}) == ["min_p", "suppress_tokens"]


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template.jinja": "a\r\nb"}, "a\r\nb"),
        ({"tokenizer_config.json": {"chat_template": "in json"}}, "in json"),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "one"}]}},
            "one",
        ),
        ({"chat_template.jinja": "file", "tokenizer_config.json": {"chat_template": "x"}}, "file"),
        ({"tokenizer_config.json": {}}, None),
        ({}, None),
    ],
)
def test_chat_template(tmp_path: Path, files: dict[str, Any], template: str | None) -> None:
    for name, value in files.items():
        write(tmp_path, name, value)
    assert chat_template_of(tmp_path) == template


def test_a_folder_is_completed(tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "folder"
    write(checkpoint, "config.json", CONFIG)
    write(checkpoint, "generation_config.json", {"eos_token_id": [2], "min_p": 0.1})
    write(checkpoint, "chat_template.jinja", "{{ '\u00e9' }}\r\n")
    write(folder, "genai_config.json", built())
    write(folder, "tokenizer_config.json", {"eos_token": "x", "is_local": True})
    write(folder, "chat_template.jinja", "another")
    write(folder, "tokenizer.json", {})
    write(folder, "model.onnx", "")
    facts = complete_folder(folder, checkpoint)
    assert facts["generation_not_carried"] == ["min_p"]
    assert facts["generation_set"]["eos_token_id"] == [[7, 2], 2]
    assert read_json(folder / "genai_config.json")["model"]["eos_token_id"] == 2
    assert read_json(folder / "tokenizer_config.json") == {"eos_token": "x"}
    wanted = (checkpoint / "chat_template.jinja").read_bytes()
    assert (folder / "chat_template.jinja").read_bytes() == wanted


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "folder", "genai_config.json", built())
    with pytest.raises(StepFailedError, match=r"no model\.onnx, tokenizer\.json, tokenizer_config"):
        complete_folder(tmp_path / "folder", tmp_path)
