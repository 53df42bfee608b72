"""What people read: table, summary, Markdown, and files in `reports/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError
from edgetune.files import dump_json
from edgetune.report.make import finish_report
from edgetune.report.markdown import to_markdown
from edgetune.report.publish import publish_report
from edgetune.report.schema import load_report
from edgetune.report.terminal import COLUMNS, summary_lines, table_rows
from edgetune.report.words import bounds, nats, percent, points, signed
from tests.report.sample import interval, make, sections

LOST: dict[str, Any] = {
    "fidelity__retention": interval(0.71, 0.05),
    "fidelity__flips": {"answers": 240, "changed": 37, "lost": 30, "gained": 2},
    "task_metrics__exact_match__candidate": 0.833,
    "task_metrics__exact_match__difference": -0.117,
    "task_metrics__exact_match__low": -0.15,
    "task_metrics__exact_match__high": -0.08,
}


def _row(value: dict[str, Any], start: str) -> tuple[str, ...]:
    return next(row for row in table_rows(value) if row[0].startswith(start))


def test_every_row_has_a_cell_for_every_column() -> None:
    for changes in ({}, {"latency__reference": None, "latency__ratio": None}, {"merge": None}):
        assert {len(row) for row in table_rows(make(**changes))} == {len(COLUMNS)}


def test_the_table_shows_reference_package_difference_limit_and_verdict() -> None:
    value = make()
    assert _row(value, "exact match") == (
        "exact match (base 10.0 %), n = 240", "95.0 %", "94.6 %", "−0.4 [−1.8, +0.7]", "≥ −2.0",
        "pass",
    )  # fmt: skip
    assert _row(value, "retention")[2:] == (
        "99.00 %", "[98.50 %, 99.50 %]", "≥ 95 %", "pass",
    )  # fmt: skip
    assert _row(value, "KL from") == (
        "KL from trained, nats", "base 1.09", "0.0040", "[0.0030, 0.0050]", "≤ 0.05", "pass",
    )  # fmt: skip
    assert _row(value, "time to answer") == (
        "time to answer (128 + 64 tokens), ms", "800.0", "200.0", "× 0.25 [0.23, 0.27]",
        "≤ × 1.00", "pass",
    )  # fmt: skip
    assert _row(value, "size") == ("size, MB", "10.0", "6.0", "× 0.60", "", "")
    assert _row(value, "tokenizer")[2] == "0 of 300 differ"


def test_a_lower_bound_is_marked_as_one() -> None:
    value = make(fidelity__kl_kind="top-k lower bound")
    assert _row(value, "KL from")[2] == "≥ 0.0040"
    assert _row(value, "retention")[2] == "≤ 99.00 %"
    assert "top-k lower bound" in summary_lines(value)[-1]


def test_what_was_not_measured_says_so() -> None:
    reason = "this host is not a board"
    value = make(
        latency={"reference": None, "candidate": None, "ratio": None, "reason": reason},
        fidelity__retention=None,
        task_metrics={},
    )
    row = _row(value, "time to answer")
    assert row[1:4] == ("not measured", "not measured", "")
    assert row[-1] == "not measured"
    assert _row(value, "retention")[2] == "not measured"
    assert _row(value, "exact match")[2] == "not measured"
    assert f"latency not measured: {reason}" in summary_lines(value)[-1]
    assert "**Not measured**" in to_markdown(value)


def test_a_budget_shows_its_limit() -> None:
    checks = [{"name": "ttft_ms", "limit": 60.0}, {"name": "decode_tokens_per_s", "limit": 400.0}]
    value = finish_report(sections(checks=checks))
    assert _row(value, "first token")[-2:] == ("≤ 60.0", "pass")
    assert _row(value, "decode")[-2:] == ("≥ 400.0", "fail")
    assert any("decoding gives 320.0 tokens/s (limit 400.0)" in s for s in summary_lines(value))


def test_the_summary_of_a_pass_is_short() -> None:
    lines = summary_lines(make())
    assert lines[0] == "verdict  pass: 6 of 6 checks measured, all pass"
    assert lines[1] == (
        "flips    3 of 240 answers changed: 1 right ones became wrong, 0 wrong ones right; "
        "McNemar p = 1"
    )
    assert len(lines) == 3
    assert lines[2].endswith("latency on the same host, 2 threads, reference: torch float32")


def test_a_failure_says_in_words_what_was_lost() -> None:
    lines = summary_lines(make(**LOST))
    assert lines[0] == "verdict  fail: retention, exact_match_drop"
    assert lines[1] == (
        "lost     the package keeps 71.0 % of what the fine-tune changed (limit 95 %)"
    )
    assert lines[2] == (
        "lost     exact match fell from 95.0 % to 83.3 % (limit 2 points, n = 240); 37 of 240 "
        "answers changed: 30 right ones became wrong, 2 wrong ones right"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fidelity__kl_mean": interval(0.29, 0.01)}, "KL from the trained model is 0.2900 nats"),
        ({"tokenizer__mismatches": 3}, "the tokenizer differs from the trained model's in 3 cases"),
        ({"fidelity__non_finite_positions": 9}, "not finite at 9 scored positions"),
        ({"latency__ratio": interval(1.4, 0.1)}, "an answer takes 1.40 × as long as"),
        ({"task_metrics__exact_match__low": -0.03}, "240 items cannot exclude a loss of 2 points"),
        (
            {"fidelity__kl_mean": interval(0.045, 0.01)},
            "unclear  KL from the trained model is 0.0450 nats (limit 0.05) (the limit lies",
        ),
    ],
)
def test_every_check_has_its_words(changes: dict[str, Any], words: str) -> None:
    assert words in "\n".join(summary_lines(make(**changes)))


def test_markdown_has_verdict_losses_table_and_examples() -> None:
    text = to_markdown(make(**LOST))
    assert text.startswith("## ❌ **fail**: `demo@this-machine`\n")
    assert "- the package keeps 71.0 % of what the fine-tune changed" in text
    assert "| exact match (base 10.0 %), n = 240 | 95.0 % | 83.3 % |" in text
    assert "**Answers that changed (37), the worst first**" in text
    assert "| 7 | yes | yes | no |" in text
    assert "<details>" not in text
    assert text.endswith("numpy 2.4.6.\n")


def test_markdown_of_a_pass_folds_what_changed() -> None:
    text = to_markdown(make())
    assert "<details><summary>Answers that changed (3), the worst first</summary>" in text
    assert "What was lost" not in text
    assert "❌" not in text


def test_foreign_text_stays_text_in_markdown() -> None:
    hostile = "a|b\n<script>`x`</script> [l](http://e) @octocat #1 **b**\x1b[31m"
    example = {"id": "1", "expected": hostile, "reference": None, "package": "x" * 500}
    difference = {"kind": "encode", "given": "|", "expected": [1], "found": [2]}
    text = to_markdown(make(examples=[example], tokenizer__differences=[difference]))
    assert "<script>" not in text
    assert "@octocat" not in text
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert row.replace("\\|", "").count("|") == 5
    assert "–" in row
    assert "…" in row
    assert "**Where the tokenizer differs**" in text


def test_numbers_are_written_as_people_read_them() -> None:
    assert [signed(x, 1) for x in (0.04, -0.04, 1.0, -2.25)] == ["0.0", "0.0", "+1.0", "−2.2"]
    assert points(-0.02) == "−2.0"
    assert percent(0.98765) == "98.8 %"
    assert [nats(x) for x in (0.0, 0.00004, 0.0123, 12.3)] == [
        "0.0000",
        "4.0e-05",
        "0.0123",
        "12.30",
    ]
    assert bounds("a", "b") == "[a, b]"


def test_publishing_judges_again_and_adds_the_steps(tmp_path: Path) -> None:
    value = make(**LOST)
    value["verdict"] = "pass"
    (tmp_path / "report.json").write_text(dump_json(value))
    steps = [{"name": "merge", "seconds": 1.5, "peak_rss_mb": None, "cached": True}]
    place, verdict = publish_report(tmp_path / "report.json", tmp_path / "reports", steps)
    assert (place.name, verdict) == ("this-machine.json", "fail")
    report = load_report(place)
    assert report.verdict == "fail"
    assert [step.name for step in report.steps] == ["merge"]
    assert place.with_suffix(".md").read_text().startswith("## ❌")


def test_an_unfit_report_is_not_published(tmp_path: Path) -> None:
    text = json.dumps(make()).replace("0.004", "NaN", 1)
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputRefusedError, match="not a finite number"):
        publish_report(tmp_path / "report.json", tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_a_figure_that_is_not_finite_never_becomes_a_report() -> None:
    with pytest.raises(InputRefusedError, match=r"latency\.ratio\.value is not a finite number"):
        finish_report(sections(latency__ratio=interval(float("nan"))))
