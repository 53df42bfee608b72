"""Does the package's tokenizer do what the trained model's did?

The expected output was made with Hugging Face's tokenizer on hard strings and travels in the
self-test; here onnxruntime-genai's tokenizer, the one a device uses, repeats it: encode, decode,
chat template, the tokens that end an answer, and the generation settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgetune.errors import InputRefusedError
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

Difference = dict[str, Any]


def tokenizer_parity(opened: OpenPackage, self_test: SelfTest) -> dict[str, Any]:
    """The report's `tokenizer` section: {cases, mismatches, skipped, differences,
    normalized}.

    `normalized`: the Unicode normal forms applied first, which onnxruntime-genai leaves out.
    `differences` lists the first 50. Skipped and counted: text with a NUL (onnxruntime-genai takes
    C strings, which end there), and templates that print today's date. Raises InputRefusedError
    for cases that are not of the agreed form.
    """
    cases = skipped = 0
    found: list[Difference] = []
    dated = bool(self_test.tokenizer_cases.get("template_uses_date"))
    for kind, given, expected, got in _compare(opened, self_test):
        nul = "\0" in given or (isinstance(expected, str) and "\0" in expected)
        if nul or (dated and kind == "template"):
            skipped += 1
            continue
        cases += 1
        if expected != got:
            found.append({"kind": kind, "given": given, "expected": expected, "found": got})
    return {
        "cases": cases,
        "mismatches": len(found),
        "skipped": skipped,
        "differences": [_shortened(row) for row in found[:_MOST_LISTED]],
        "normalized": normal_forms(opened),
    }


def _compare(opened: OpenPackage, self_test: SelfTest) -> Iterator[tuple[str, str, Any, Any]]:
    """(kind, given, expected, found) of every case."""
    cases = self_test.tokenizer_cases
    try:
        for case in cases.get("encode", []):
            yield "encode", case["text"], list(case["ids"]), _encode(opened, case["text"])
        for case in cases.get("decode", []):
            ids = np.array(case["ids"], dtype=np.int32)
            text = opened.tokenizer.decode(ids) if ids.size else ""
            yield "decode", str(case["ids"]), case["text"], text
        for case in cases.get("template", []):
            yield "template", _given(case), case["text"], _apply_template(opened, case)
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
    """A difference fit for a report: long text and long lists cut around where they part."""
    expected, got = row["expected"], row["found"]
    start = 0
    if type(expected) is type(got) and isinstance(expected, str | list):
        pairs = zip(expected, got, strict=False)
        start = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))
    start = max(0, start - 8)
    cut = {
        key: row[key][start : start + 40] if isinstance(row[key], str | list) else row[key]
        for key in ("expected", "found")
    }
    return {"kind": row["kind"], "given": str(row["given"])[:120], "from": start, **cut}
