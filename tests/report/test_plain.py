"""The view that a device judges by gives what the schema's own classes give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest

from edgetune.errors import InputRefusedError
from edgetune.report import plain
from edgetune.report.make import finish_on_device, finish_report
from edgetune.report.plain import as_report
from edgetune.report.schema import Report, parse_report
from edgetune.report.schema.part import Part
from edgetune.report.verdict import judge
from edgetune.report.words import (
    double_bos_note,
    flips_of,
    headline,
    not_measured,
    sentence_of,
    what_is_unclear,
    what_was_lost,
)
from tests.report.sample import interval, make, sections

NO_LATENCY = {"reference": None, "candidate": None, "ratio": None, "reason": "not here"}
EMULATED = {
    "cpu": "cortex-a76", "emulator": "qemu-aarch64 8", "items_total": 240,
    "fidelity": {**sections()["fidelity"], "retention": interval(0.2, 0.1)},
    "task_metrics": sections()["task_metrics"], "tokenizer": None, "reason": None,
}  # fmt: skip
LOST = {"answers": 240, "changed": 90, "lost": 80, "gained": 2}
DIFFERS = {
    "cases": 300, "mismatches": 2, "skipped": 0, "double_bos": True,
    "differences": [{"kind": "prompt", "unit": "token", "at": 3, "expected": 5, "found": 6}],
    "by_kind": {"prompt": {"cases": 240, "mismatches": 2}},
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {},
    {"latency": NO_LATENCY},
    {"fidelity__retention": None, "fidelity__reasons": {"retention": "no base"}},
    {"fidelity__retention": interval(0.5, 0.1), "fidelity__flips": LOST},
    {"fidelity__items": 3, "fidelity__kl_mean": interval(0.05, 0.02)},
    {"fidelity__non_finite_positions": 7},
    {"tokenizer": DIFFERS},
    {"task_metrics__exact_match__difference": -0.015, "task_metrics__exact_match__low": -0.05},
    {"emulated": EMULATED, "checks": [
        {"name": "emulated_retention", "limit": 0.95},
        {"name": "emulated_exact_match_drop", "limit": 0.02},
        {"name": "ttft_ms", "limit": 100.0}, {"name": "decode_tokens_per_s", "limit": 1.0},
        {"name": "peak_rss_mb", "limit": 10.0, "required": True},
        {"name": "package_bytes", "limit": 1.0},
    ]},
]  # fmt: skip


@pytest.mark.parametrize("changes", CASES, ids=lambda own: ",".join(own) or "sound")
def test_both_views_give_the_same_verdict_in_the_same_words(changes: dict[str, Any]) -> None:
    value = sections(**changes)
    there, here = finish_on_device(value), finish_report(value)
    assert (there["verdict"], there["checks"]) == (here["verdict"], here["checks"])
    assert finish_report(value) == parse_report(there).model_dump(mode="json")
    assert list(_words(as_report(there))) == list(_words(parse_report(there)))


def _words(report: Report) -> Iterator[Any]:
    judgement = judge(report)
    yield headline(judgement)
    yield from what_was_lost(report, judgement)
    yield from what_is_unclear(report, judgement)
    yield from not_measured(judgement)
    yield from (sentence_of(report, check) for check in judgement.checks)
    yield flips_of(report), double_bos_note(report)


def test_a_figure_that_is_not_finite_is_refused_on_a_device_too() -> None:
    value = sections(fidelity__kl_mean={"value": math.nan, "low": 0.0, "high": 1.0})
    with pytest.raises(InputRefusedError, match=r"fidelity\.kl_mean\.value is not a finite number"):
        finish_on_device(value)


def test_every_mapping_and_list_of_the_schema_is_known_as_one() -> None:
    for name, kind in _fields(Report, set()):
        inner = get_args(kind)
        if get_origin(kind) is dict:
            parts = _is_part(inner[1])
            assert name in (plain.MAPPINGS_OF_PARTS if parts else plain.MAPPINGS), name
        elif get_origin(kind) is list and _is_part(inner[0]):
            assert name in plain.LISTS_OF_PARTS, name
    assert make()["schema_version"] == plain.SCHEMA_VERSION


def _fields(part: type[Part], seen: set[type]) -> Iterator[tuple[str, Any]]:
    """(name, type without null) of every field below a part."""
    if part in seen:
        return
    seen.add(part)
    for name, field in part.model_fields.items():
        yield from _kinds(name, field.annotation, seen)


def _kinds(name: str, kind: Any, seen: set[type]) -> Iterator[tuple[str, Any]]:
    if get_origin(kind) in (dict, list):
        yield name, kind
        yield from (found for own in get_args(kind) for found in _kinds("", own, seen) if found[0])
    elif _is_part(kind):
        yield from _fields(kind, seen)
    else:
        yield from (found for own in get_args(kind) for found in _kinds(name, own, seen))


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Part)
