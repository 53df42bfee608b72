"""A tokenizer that differs in one newline fails; one that does the same passes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.errors import InputRefusedError
from edgetune.runtime.session import OpenPackage
from edgetune.validate.self_test import load_self_test
from edgetune.validate.tokenizer_parity import tokenizer_parity
from tests.validate.fakes import make_item, make_self_test

CHAT = [{"role": "user", "content": "hi"}]
CASES: Mapping[str, Any] = {
    "encode": [{"text": "ab", "ids": [97, 98]}],
    "decode": [{"ids": [97, 98], "text": "ab"}],
    "template": [
        {
            "messages": CHAT,
            "add_generation_prompt": True,
            "text": "user: hi\n",
            "ids": [ord(c) for c in "user: hi\n"],
        }
    ],
    "special_tokens": {
        "roles": {"bos_token": None, "eos_token": {"text": "e", "id": 101}},
        "added": [{"text": "e", "id": 101, "ids": [101], "special": False}],
    },
}


class FakeTokenizer:
    """Tokens are code points."""

    template = "user: hi\n"

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text.split("\0")[0]]

    def decode(self, ids: Any) -> str:
        return "".join(chr(n) for n in ids)

    def create_stream(self) -> Any:
        return SimpleNamespace(decode=chr)

    def apply_chat_template(self, messages: str, add_generation_prompt: bool) -> str:
        assert json.loads(messages) == CHAT
        return self.template


def _opened(search: Mapping[str, Any] | None = None, **model: Any) -> Any:
    config = {"model": {"eos_token_id": 4, **model}, "search": search or {}}
    eos = config["model"]["eos_token_id"]
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    return SimpleNamespace(
        tokenizer=FakeTokenizer(), config=config, eos_token_ids=ids,
        variant=SimpleNamespace(folder=Path("nowhere")),
    )  # fmt: skip


def _self_test(cases: Mapping[str, Any] = CASES, **facts: Any) -> Any:
    items = [make_item(1, "a", "a", prompt_text="xy", prompt_ids=(120, 121))]
    facts = {"eos_token_ids": [4], "generation": {}, **facts}
    return replace(make_self_test(items, **facts), tokenizer_cases=cases)


def _kinds(opened: Any, self_test: Any) -> list[str]:
    return [row["kind"] for row in tokenizer_parity(opened, self_test)["differences"]]


def test_the_same_tokenizer_has_no_differences() -> None:
    found = tokenizer_parity(_opened(), _self_test())
    assert found["mismatches"] == found["skipped"] == 0
    # Encode, decode whole and streamed, a chat's text and tokens, a special token and what it
    # decodes to, a prompt, the end tokens, nine generation settings.
    assert found["cases"] == 18
    assert sum(counts["cases"] for counts in found["by_kind"].values()) == 18


def test_the_packed_tokenizer_is_the_trained_models(opened: OpenPackage) -> None:
    self_test = load_self_test(opened.manifest.path / "self_test")
    found = tokenizer_parity(opened, self_test)
    assert found["differences"] == []
    assert found["mismatches"] == 0
    assert found["skipped"] == 1
    assert found["cases"] > 20
    assert {"chat_tokens", "stream", "special_token"} < set(found["by_kind"])


def test_one_newline_in_the_template_is_a_difference() -> None:
    opened = _opened()
    opened.tokenizer.template = "user: hi\n\n"
    found = tokenizer_parity(opened, _self_test())
    assert found["mismatches"] == 1
    assert found["differences"][0]["kind"] == "template"
    assert found["differences"][0]["expected"] == "ser: hi\n"
    assert found["differences"][0]["found"] == "ser: hi\n\n"
    assert (found["differences"][0]["at"], found["differences"][0]["unit"]) == (9, "character")


@pytest.mark.parametrize(
    ("cases", "kind"),
    [
        ({"encode": [{"text": "ab", "ids": [97, 99]}]}, "encode"),
        ({"decode": [{"ids": [97], "text": "b"}]}, ["decode", "stream"]),
        ({"encode": [{"text": "ab", "repeat": 5000, "ids": [97, 98] * 4999}]}, "encode"),
        ({"template": [{**CASES["template"][0], "ids": [0, *CASES["template"][0]["ids"]]}]},
         "chat_tokens"),
        ({"special_tokens": {"added": [{"text": "e", "id": 9, "ids": [9], "special": False}]}},
         ["special_token", "special_token"]),
        ({"special_tokens": {"added": [{"text": "e", "id": 101, "ids": [101], "special": True}]}},
         "special_token"),
    ],
)  # fmt: skip
def test_every_kind_of_case_can_differ(cases: Mapping[str, Any], kind: str | list[str]) -> None:
    assert _kinds(_opened(), _self_test(cases)) == ([kind] if isinstance(kind, str) else kind)


def test_a_role_is_compared_where_the_package_names_it(tmp_path: Path) -> None:
    roles = {
        "bos_token": {"text": "<s>", "id": 1},
        "eos_token": {"text": "</s>", "id": 2},
        "pad_token": None,
        "unk_token": {"text": "<unk>", "id": 0},
    }
    wanted = _self_test({"special_tokens": {"roles": roles}})
    opened = _opened(bos_token_id=1, pad_token_id=2)
    opened.variant.folder = tmp_path
    named = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert _kinds(opened, wanted) == []
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, "bos_token": "<b>"}))
    (row,) = tokenizer_parity(opened, wanted)["differences"]
    assert (row["given"], row["expected"], row["found"]) == ("bos_token", "<s>", "<b>")
    opened.config["model"]["bos_token_id"] = 5
    assert _kinds(opened, wanted) == ["special_token", "special_token"]


@pytest.mark.parametrize(("template", "tokenizer"), [(True, True), (True, False), (False, True)])
def test_two_bos_tokens_are_told(template: bool, tokenizer: bool) -> None:
    cases = {**CASES, "bos": {"template": template, "tokenizer": tokenizer}}
    found = tokenizer_parity(_opened(), _self_test(cases))
    assert found["double_bos"] is (template and tokenizer)
    assert found["mismatches"] == 0


def test_the_gravest_kind_comes_first() -> None:
    opened = _opened(eos_token_id=[7])
    opened.tokenizer.template = "user: hi"
    cases = {**CASES, "encode": [{"text": "ab", "ids": [1]}]}
    assert _kinds(opened, _self_test(cases)) == ["template", "eos_token_ids", "encode"]


def test_end_tokens_and_generation_settings_can_differ() -> None:
    assert _kinds(_opened(eos_token_id=[4, 5]), _self_test()) == ["eos_token_ids"]
    assert _kinds(_opened(eos_token_id=[5, 4]), _self_test(eos_token_ids=[4, 5])) == []
    wanted = _self_test(generation={"temperature": 0.6, "do_sample": True})
    assert _kinds(_opened(), wanted) == ["generation", "generation"]
    assert _kinds(_opened({"temperature": 0.6, "do_sample": True}), wanted) == []


def test_a_prompt_of_the_task_can_differ_and_may_begin_with_a_hidden_token() -> None:
    items = [make_item(1, "a", "a", prompt_text="xy", prompt_ids=(0, 120, 121))]
    hidden = replace(_self_test(), items=tuple(items))
    assert _kinds(_opened(), hidden) == []
    items = [make_item(1, "a", "a", prompt_text="xy", prompt_ids=(0, 120, 122))]
    assert _kinds(_opened(), replace(_self_test(), items=tuple(items))) == ["prompt"]


def test_a_nul_and_a_template_with_todays_date_are_skipped() -> None:
    cases = {"encode": [{"text": "a\0b", "ids": [97, 0, 98]}]}
    found = tokenizer_parity(_opened(), _self_test(cases))
    assert (found["mismatches"], found["skipped"]) == (0, 1)
    opened = _opened()
    opened.tokenizer.template = "today"
    found = tokenizer_parity(opened, _self_test({**CASES, "template_uses_date": True}))
    assert (found["mismatches"], found["skipped"]) == (0, 1)


def test_many_differences_are_counted_and_fifty_are_listed() -> None:
    cases = {"encode": [{"text": "a" * 300, "ids": [1]}] * 60}
    found = tokenizer_parity(_opened(), _self_test(cases))
    assert (found["mismatches"], len(found["differences"])) == (60, 50)
    assert len(found["differences"][0]["found"]) == 40


@pytest.mark.parametrize("cases", [{"encode": [{"text": "a"}]}, {"decode": 3}, {"template": [1]}])
def test_cases_of_another_form_are_refused(cases: Mapping[str, Any]) -> None:
    with pytest.raises(InputRefusedError, match="not of the agreed form"):
        tokenizer_parity(_opened(), _self_test(cases))
