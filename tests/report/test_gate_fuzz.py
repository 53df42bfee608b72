"""Any value anywhere in a report or its baseline: a verdict that all outputs share, or one clear
refusal. Never another exception, never a pass with a bad figure."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgetune.errors import InputRefusedError, UsageError
from edgetune.report.annotations import to_annotations
from edgetune.report.collect import Found
from edgetune.report.gate import Outcome, gate_reports
from edgetune.report.gate_table import baseline_rows, gate_lines
from edgetune.report.junit import to_junit
from edgetune.report.regression import Margins
from edgetune.report.schema import load_report
from edgetune.report.summary import to_summary
from edgetune.report.terminal import table_rows
from tests.report.compared import put, whole

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 0.0, -0.5, 1e-300, 1e300, 10**15, float("nan"), float("inf"), "", "x",
    "\x00\x1b[2J]]>", [], {}, [1], {"value": 1.0, "low": 2.0, "high": 0.0},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, long lists by their first entries."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, child in value.items():
            yield from places(child, (*path, key))
    elif isinstance(value, list):
        for number, child in enumerate(value[:2]):
            yield from places(child, (*path, number))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = place = copy.deepcopy(value)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return value


def show_all(outcome: Outcome) -> None:
    root = ElementTree.fromstring(to_junit(outcome))
    red = root.get("failures") != "0", root.get("errors") != "0"
    assert red[0] == (outcome.verdict == "fail")
    assert any(red) == (outcome.verdict != "pass")
    assert outcome.verdict in to_summary(outcome).splitlines()[0]
    json.dumps(outcome.as_json(), allow_nan=False)
    kinds = {line.split(" ")[0] for line in to_annotations(outcome)}
    assert ("::error" in kinds) == (outcome.verdict == "fail")
    for one in outcome.gated:
        assert table_rows(one.report)
        assert gate_lines(one)
        baseline_rows(one)


@pytest.mark.parametrize("seed", range(2))
def test_any_value_anywhere_is_judged_or_refused(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    old, new = whole(environment__memory=1, items=140), whole(items=140)
    baseline = Found(tmp_path / "old.json", load_report(put(tmp_path / "old.json", old)), "old")
    every = list(places(new))
    verdicts: dict[str, int] = {}
    for number in range(60):
        path, value = generator.choice(every), generator.choice(VALUES)
        file = put(tmp_path / "new.json", json.dumps(changed(new, path, value)))
        try:
            found = Found(file, load_report(file), str(number))
            pair = ([found], [baseline]) if number % 2 else ([baseline], [found])
            outcome = gate_reports(*pair, Margins(drop=0.2))
        except (InputRefusedError, UsageError):
            verdicts["refused"] = verdicts.get("refused", 0) + 1
            continue
        verdicts[outcome.verdict] = verdicts.get(outcome.verdict, 0) + 1
        show_all(outcome)
    assert {"refused", "pass"} <= set(verdicts)


def test_no_single_edit_of_a_figure_makes_a_failing_report_pass(tmp_path: Path) -> None:
    # Exact match misses its limit in every copy of the figure.
    failing = whole(wrong=range(60), checks=[{"name": "exact_match_drop", "limit": 0.02}])
    figures = [p for p in places(failing) if p[0] in ("task_metrics", "per_item", "fidelity")]
    numbers = [p for p in figures if isinstance(get(failing, p), int | float)]
    assert len(numbers) > 20
    for path in numbers:
        for new in (0, 1.0, 240):
            file = put(tmp_path / "r.json", json.dumps(changed(failing, path, new)))
            try:
                found = Found(file, load_report(file), "")
                outcome = gate_reports([found], None, Margins())
            except InputRefusedError:
                continue
            assert outcome.verdict != "pass", (path, new)


def get(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
