"""What of the evaluation data a package and its report carry, and a report without its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.files import read_json
from edgetune.runtime.manifest import Manifest
from edgetune.validate.self_test import SelfTest

# What of a changed answer and of a tokenizer's difference is text of the data.
_EXAMPLE_TEXT = ("prompt", "expected", "reference", "package")
_DIFFERENCE_TEXT = ("given", "expected", "found")
LEFT_OUT = "left out: private data"


def describe_self_test(manifest: Manifest, measured: SelfTest) -> dict[str, Any]:
    """The report's `self_test` section: what was measured on, and what the package carries.

    `carries`: {source, items, evaluation_text: {items, bytes} or null}.
    """
    head = read_json(manifest.path / "self_test" / "self_test.json")
    head = head if isinstance(head, Mapping) else {}
    keys = ("source", "items", "evaluation_text")
    return {
        "measured_on": str(measured.facts.get("source")),
        "items": len(measured.items),
        "carries": {key: head.get(key) for key in keys},
    }


def without_text(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without a word of the evaluation items: changed answers keep their item, whether
    they were lost and how far they are off; tokenizer differences in prompts keep that they are
    there."""
    found = dict(report)
    found["examples"] = [
        {**row, **dict.fromkeys(_EXAMPLE_TEXT)} for row in report.get("examples") or []
    ]
    items = report.get("per_item")
    if items is not None:
        # A digest of a short answer gives the answer to whoever can guess it.
        found["per_item"] = {**items, "answers": [None] * len(items["ids"])}
    found["tokenizer"] = _tokenizer_without(report["tokenizer"])
    emulated = report.get("emulated")
    if emulated is not None and emulated.get("tokenizer") is not None:
        tokenizer = _tokenizer_without(emulated["tokenizer"])
        found["emulated"] = {**emulated, "tokenizer": tokenizer}
    return found


def _tokenizer_without(section: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        # The other kinds compare edgetune's own strings.
        {**row, **dict.fromkeys(_DIFFERENCE_TEXT, LEFT_OUT)} if row["kind"] == "prompt" else row
        for row in section["differences"]
    ]
    return {**section, "differences": rows}
