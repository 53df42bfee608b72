"""Does the package's tokenizer do what the trained model's did?

The expected output was made with Hugging Face's tokenizer on hard strings and travels in the
self-test; here onnxruntime-genai's tokenizer, the one a device uses, repeats it: chat template, the
tokens of a rendered chat (with one BOS, not two), special tokens, the tokens that end an answer,
encode, decode whole and token by token, and the generation settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgetune.errors import InputRefusedError
from edgetune.files import read_json
from edgetune.runtime.session import OpenPackage
from edgetune.runtime.text import encode, normal_forms
from edgetune.validate.self_test import SelfTest

_MOST_LISTED = 50
# What a Hugging Face generation config leaves out has these values there and in genai_config.json.
_DEFAULTS: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "min_length": 0,
}

# What differs, the gravest first: a wrong template changes every answer.
KINDS = (
    *("template", "chat_tokens", "prompt", "special_token", "eos_token_ids", "encode", "decode"),
    *("stream", "generation"),
)
Difference = dict[str, Any]


def tokenizer_parity(opened: OpenPackage, self_test: SelfTest) -> dict[str, Any]:
    """The report's `tokenizer` section: {cases, mismatches, skipped, by_kind {kind: {cases,
    mismatches}}, differences, normalized, double_bos}.

    `differences` lists the first 50, the gravest kind first. `normalized`: the Unicode normal forms
    applied first, which onnxruntime-genai leaves out. `double_bos`: chat template and tokenizer
    both write a BOS, so that a rendered chat encoded with special tokens has two. Skipped and
    counted: text with a NUL (onnxruntime-genai takes C strings, which end there), and templates
    that print today's date. Raises InputRefusedError for cases that are not of the agreed form.
    """
    skipped = 0
    by_kind: dict[str, dict[str, int]] = {}
    found: list[Difference] = []
    dated = bool(self_test.tokenizer_cases.get("template_uses_date"))
    for kind, given, expected, got in _compare(opened, self_test):
        nul = "\0" in given or (isinstance(expected, str) and "\0" in expected)
        if nul or (dated and kind == "template"):
            skipped += 1
            continue
        counts = by_kind.setdefault(kind, {"cases": 0, "mismatches": 0})
        counts["cases"] += 1
        if expected != got:
            counts["mismatches"] += 1
            found.append({"kind": kind, "given": given, "expected": expected, "found": got})
    found.sort(key=lambda row: KINDS.index(row["kind"]))
    bos = self_test.tokenizer_cases.get("bos") or {}
    return {
        "cases": sum(counts["cases"] for counts in by_kind.values()),
        "mismatches": len(found),
        "skipped": skipped,
        "by_kind": {kind: by_kind[kind] for kind in KINDS if kind in by_kind},
        "differences": [_shortened(row) for row in found[:_MOST_LISTED]],
        "normalized": normal_forms(opened),
        "double_bos": bool(bos.get("template") and bos.get("tokenizer")),
    }


def _compare(opened: OpenPackage, self_test: SelfTest) -> Iterator[tuple[str, str, Any, Any]]:
    """(kind, given, expected, found) of every case."""
    cases = self_test.tokenizer_cases
    try:
        for case in cases.get("encode", []):
            text = case["text"] * int(case.get("repeat", 1))
            yield "encode", text, list(case["ids"]), _encode(opened, text)
        for case in cases.get("decode", []):
            ids, given = [int(token) for token in case["ids"]], str(case["ids"])
            yield "decode", given, case["text"], _decode(opened, ids)
            yield "stream", given, case["text"], _stream(opened, ids)
        for case in cases.get("template", []):
            yield "template", _given(case), case["text"], _apply_template(opened, case)
            yield "chat_tokens", case["text"], list(case["ids"]), _encode(opened, case["text"])
        yield from _compare_special_tokens(opened, cases.get("special_tokens") or {})
    except (KeyError, TypeError, ValueError, AttributeError) as why:
        msg = f"self_test/tokenizer_cases.json: not of the agreed form ({why})"
        raise InputRefusedError(msg, "build the package again") from why
    for item in self_test.items:
        if item.prompt_text:
            expected, got = list(item.prompt_ids), _encode(opened, item.prompt_text)
            # A plain prompt begins with a token that its text does not show and that whoever
            # calls genai's tokenizer puts there; a rendered chat brings its own.
            if isinstance(got, list) and expected[1:] == got:
                got = expected[:1] + got
            yield "prompt", item.prompt_text, expected, got
    yield from _compare_settings(opened, self_test.facts)


def _compare_special_tokens(
    opened: OpenPackage, tokens: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, Any]]:
    """Each added token is one token still, shown in decoded text or not; and who plays which role.

    A role's text is compared where the package's tokenizer_config.json names it (what Hugging Face
    reads), its id where genai_config.json does (what onnxruntime-genai reads).
    """
    for token in tokens.get("added", []):
        text, identifier = str(token["text"]), int(token["id"])
        yield "special_token", text, list(token["ids"]), _encode(opened, text)
        shown = "" if token["special"] else text
        # onnxruntime-genai's decode makes U+FFFD of an empty text, its stream does not.
        yield "special_token", f"{text} decoded", shown, _stream(opened, [identifier])
    where = opened.variant.folder / "tokenizer_config.json"
    settings = read_json(where) if where.is_file() else {}
    for role, expected in (tokens.get("roles") or {}).items():
        if role in settings:
            wanted = None if expected is None else expected["text"]
            yield "special_token", role, wanted, _text_of(settings[role])
        own = opened.config["model"].get(f"{role}_id")
        # The end tokens are a list and a kind of their own; where the model names no token, the
        # exporter puts another one.
        if own is not None and expected is not None and role != "eos_token":
            yield "special_token", f"{role}_id", expected["id"], own


def _text_of(value: Any) -> Any:
    """A token as tokenizer_config.json has it: text, or an object with its content."""
    return value.get("content") if isinstance(value, Mapping) else value


def _compare_settings(
    opened: OpenPackage, facts: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, Any]]:
    expected = sorted(int(token) for token in facts.get("eos_token_ids") or [])
    yield "eos_token_ids", "genai_config.json", expected, sorted(opened.eos_token_ids)
    wanted = facts.get("generation") or {}
    search = opened.config.get("search") or {}
    for key, default in _DEFAULTS.items():
        value = wanted.get(key)
        value = default if value is None else value
        own = search.get(key)
        yield "generation", key, value, default if own is None else own


def _decode(opened: OpenPackage, ids: list[int]) -> str:
    return str(opened.tokenizer.decode(np.array(ids, dtype=np.int32))) if ids else ""


def _stream(opened: OpenPackage, ids: list[int]) -> str:
    """The text token by token, as `edgetune run` shows it."""
    pieces = opened.tokenizer.create_stream()
    return "".join(str(pieces.decode(token)) for token in ids)


def _encode(opened: OpenPackage, text: str) -> list[int] | str:
    try:
        return encode(opened, text)
    except (RuntimeError, UnicodeEncodeError) as why:
        return f"refused: {why}"


def _apply_template(opened: OpenPackage, case: Mapping[str, Any]) -> str:
    messages = json.dumps(case["messages"], ensure_ascii=False)
    generation = bool(case["add_generation_prompt"])
    try:
        return str(opened.tokenizer.apply_chat_template(messages, add_generation_prompt=generation))
    except RuntimeError as why:
        return f"refused: {why}"


def _given(case: Mapping[str, Any]) -> str:
    return json.dumps(case["messages"], ensure_ascii=False)


def _shortened(row: Difference) -> Difference:
    """A difference fit for a report: `at`, the first character or token that differs; long text
    and long lists cut around it."""
    expected, got = row["expected"], row["found"]
    at = None
    if type(expected) is type(got) and isinstance(expected, str | list):
        pairs = zip(expected, got, strict=False)
        at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))
    start = max(0, (at or 0) - 8)
    cut = {
        key: row[key][start : start + 40] if isinstance(row[key], str | list) else row[key]
        for key in ("expected", "found")
    }
    unit = "character" if isinstance(expected, str) else "token"
    given = str(row["given"])[:120]
    return {"kind": row["kind"], "given": given, "at": at, "unit": unit, "from": start, **cut}
