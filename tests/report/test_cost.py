"""Cost in words: figures with their unit, and never a figure that was not measured."""

from __future__ import annotations

from typing import Any

from edgetune.report.markdown import to_markdown
from edgetune.report.schema import parse_report
from edgetune.report.terminal import summary_lines, table_rows
from tests.report.sample import make

COST: dict[str, Any] = {
    "trained_parameters": 98_304,
    "total_parameters": 3_000_000,
    "package_bytes": 6_000_000,
    "reference": {"cpu_s_per_1k_tokens": 4.0, "joules_per_1k_tokens": None},
    "candidate": {"cpu_s_per_1k_tokens": 0.5, "joules_per_1k_tokens": None},
    "reasons": {"joules_per_1k_tokens": "the machine has no energy counter"},
}


def _cost(**changes: Any) -> list[str]:
    report = {**make(), "cost": {**COST, **changes}}
    return [line for line in summary_lines(report) if line.startswith("cost ")]


def test_two_lines_say_what_it_cost() -> None:
    assert _cost() == [
        "cost     98,304 of 3,000,000 parameters trained (3.28 %); 6.0 MB shipped",
        "cost     1,000 tokens: 0.50 CPU seconds (reference 4.00 CPU seconds); energy not "
        "measured: the machine has no energy counter",
    ]


def test_joules_where_the_machine_tells() -> None:
    side = {"cpu_s_per_1k_tokens": 0.5, "joules_per_1k_tokens": 12.34}
    (_, line) = _cost(candidate=side, reference=None, reasons={})
    assert line == "cost     1,000 tokens: 0.50 CPU seconds, 12.3 J"


def test_what_is_not_known_is_not_a_figure() -> None:
    reasons = {"trained_parameters": "an old version built it"}
    (line,) = _cost(trained_parameters=None, candidate=None, reference=None, reasons=reasons)
    assert "parameters not measured: an old version built it" in line
    assert not [text for text in summary_lines(make()) if text.startswith("cost")]


def test_percentiles_and_a_minute_are_shown() -> None:
    value = {**make(), "cost": COST}
    side = value["latency"]["candidate"]
    side["token_ms"] = {"p50": 0.5, "p95": 0.62, "p99": 1.0}
    side["sustained"] = {"window_s": 10.0, "tokens_per_s": [100.0, 90.0], "last_to_first": 0.9}
    rows = {row[0]: row for row in table_rows(value)}
    assert rows["per token 50/95/99 %, ms"][1:3] == ("not measured", "0.50 / 0.62 / 1.00")
    assert rows["load from a cold page cache, s"][2] == "not measured"
    text = (
        "a minute without a pause: 100.0 90.0 tokens/s over each 10 s, the last 90 % of the first"
    )
    assert any(text in line for line in summary_lines(value))
    assert "98,304 of 3,000,000 parameters" in to_markdown(parse_report(value))
