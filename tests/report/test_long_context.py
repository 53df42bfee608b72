"""Long texts in a report: judged with the rest, shown everywhere, absent where there are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgetune.auto import _share_of_limit
from edgetune.errors import InputRefusedError
from edgetune.report.contradictions import contradictions
from edgetune.report.long_context_words import long_context_lines
from edgetune.report.make import finish_on_device
from edgetune.report.markdown import to_markdown
from edgetune.report.page.page import to_page
from edgetune.report.questions import LONG_CONTEXT
from edgetune.report.schema import parse_report
from edgetune.report.terminal import summary_lines, table_rows
from edgetune.report.verdict import judge
from edgetune.report.words import what_was_lost
from edgetune.validate.checks import make_checks
from tests.report.sample import SECTIONS, interval, make, make_report, sections


def stretch(kl: Any, **more: Any) -> dict[str, Any]:
    """After 4081 to 4112 tokens, on both sides of a window."""
    return {
        "what": "sliding window", "at": 4096, "first": 4081, "last": 4112, "positions": 32,
        "non_finite_positions": 0, "kl_mean": kl, "top1_agreement": interval(0.97, 0.02),
        "reason": None, **more,
    }  # fmt: skip


def end(kl: Any, **more: Any) -> dict[str, Any]:
    """The same at the end of the context."""
    place = {"what": "context window", "at": 8192, "first": 8161, "last": 8192}
    return stretch(kl, **{**place, **more})


MISSING = "not measured at the context window of 131072 tokens: it takes long"


def section(*stretches: Any, not_measured: Any = ()) -> dict[str, Any]:
    return {
        "window": 8192,
        "kl_kind": "top-k lower bound",
        "stretches": list(stretches),
        "not_measured": list(not_measured),
    }


def judged(*stretches: Any, tolerance: float | None = 0.05) -> dict[str, Any]:
    """The finished report, its checks made as the validation makes them."""
    report = {**SECTIONS, "long_context": section(*stretches)}
    limits = {"tolerances": {"kl_mean": tolerance}, "budgets": {}}
    return make(long_context=report["long_context"], checks=make_checks(limits, report))


def check_of(report: dict[str, Any]) -> dict[str, Any] | None:
    return next((c for c in report["checks"] if c["name"] == LONG_CONTEXT), None)


NOT_FINITE = {
    "kl_mean": None, "top1_agreement": None, "non_finite_positions": 5,
    "reason": "the package's output is not finite at 5 of 32 positions",
}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (interval(0.01, 0.005), interval(0.02, 0.01), "pass"),
        (interval(0.01, 0.005), interval(0.3, 0.1), "fail"),
        (interval(0.3, 0.1), interval(0.01, 0.005), "fail"),
        (interval(0.01, 0.005), interval(0.04, 0.02), "inconclusive"),
        # The stretch with the smaller figure has the wider bounds.
        (interval(0.02, 0.04), interval(0.03, 0.001), "inconclusive"),
    ],
)
def test_all_stretches_have_to_pass(first: Any, second: Any, verdict: str) -> None:
    report = judged(stretch(first), end(second))
    check = check_of(report)
    assert check is not None
    assert check["verdict"] == report["verdict"] == verdict
    assert check["value"] == max(first["value"], second["value"])
    assert check["high"] == max(first["high"], second["high"])
    assert check["limit"] == 0.05
    assert contradictions(parse_report(report)) == []


def test_few_positions_never_pass() -> None:
    check = check_of(judged(stretch(interval(0.01), positions=19, first=4094)))
    assert check is not None
    assert check["verdict"] == "inconclusive"
    assert check["reason"] == "19 positions are too few, 20 are the least that can tell"


def test_an_output_that_is_not_finite_fails() -> None:
    """Also where the other stretch passes: what is left of it proves nothing."""
    report = judged(stretch(interval(0.01, 0.001)), end(**{"kl": None, **NOT_FINITE}))
    assert report["verdict"] == "fail"
    verdicts = {c["name"]: (c["verdict"], c["value"]) for c in report["checks"]}
    assert verdicts["finite_outputs"] == ("fail", 5.0)
    assert verdicts[LONG_CONTEXT] == ("not measured", None)
    assert list(what_was_lost(parse_report(report), judge(parse_report(report)))) == [
        "the package's output is not finite at 5 scored positions"
    ]
    rows = {row[0]: row for row in table_rows(report)}
    assert rows["finite outputs"][2] == "5 of 3664 not finite"
    assert rows["KL after 8161 to 8192 tokens"][2] == "not measured"


def test_a_number_that_is_not_finite_is_no_report() -> None:
    with pytest.raises(InputRefusedError, match="not a finite number"):
        judged(stretch(interval(float("nan"))))
    with pytest.raises(InputRefusedError, match="not a finite number"):
        finish_on_device(sections(long_context=section(stretch(interval(float("nan"))))))


def test_texts_that_nobody_could_read_are_no_pass() -> None:
    none = {"kl_mean": None, "top1_agreement": None, "positions": 0, "reason": "no memory"}
    report = judged(stretch(**{"kl": None, **none}))
    check = check_of(report)
    assert check is not None
    assert (check["verdict"], check["required"], check["reason"]) == (
        "not measured", True, "no memory"
    )  # fmt: skip
    assert report["verdict"] == "inconclusive"


@pytest.mark.parametrize("tolerance", [None, 0.05])
def test_there_is_no_question_without_stretches_or_tolerance(tolerance: float | None) -> None:
    assert check_of(judged(tolerance=tolerance)) is None
    if tolerance is None:
        assert check_of(judged(stretch(interval(0.3)), tolerance=None)) is None
        # Outputs are to be finite whatever the tolerances.
        report = judged(stretch(**{"kl": None, **NOT_FINITE}), tolerance=None)
        assert report["verdict"] == "fail"


def test_a_report_without_the_section_is_read_as_before() -> None:
    old = {k: v for k, v in make().items() if k != "long_context"}
    report = parse_report(old)
    assert report.long_context is None
    assert judge(report).verdict == "pass"
    assert list(long_context_lines(report)) == []
    assert "long texts" not in to_page(report).lower()


def test_a_check_without_its_section_is_not_measured() -> None:
    """Somebody took the section out of a report that asks for it."""
    value = judged(stretch(interval(0.3)))
    report = parse_report({**value, "long_context": None})
    assert judge(report).verdict == "inconclusive"


def test_it_is_shown_everywhere() -> None:
    value = judged(stretch(interval(0.3, 0.1)), end(interval(0.01, 0.005)))
    value["long_context"]["not_measured"] = [MISSING]
    report = parse_report(value)
    lines = [
        "sliding window of 4096 tokens, after 4081 to 4112: KL ≥ 0.3000 nats, top-1 agreement "
        "97.0 % (32 positions)",
        "context window of 8192 tokens, after 8161 to 8192: KL ≥ 0.0100 nats, top-1 agreement "
        "97.0 % (32 positions)",
        MISSING,
    ]
    assert list(long_context_lines(report)) == lines
    assert [line for line in summary_lines(report) if line.startswith("long ")] == [
        f"long     {line}" for line in lines
    ]
    lost = "KL from the trained model is 0.3000 nats after 4081 to 4112 tokens (sliding window"
    assert any(lost in line for line in summary_lines(report))
    rows = {row[0]: row[2:] for row in table_rows(report)}
    assert rows["KL after 4081 to 4112 tokens"] == (
        "≥ 0.3000", "[0.2000, 0.4000]", "≤ 0.05", "fail"
    )  # fmt: skip
    assert rows["KL after 8161 to 8192 tokens"] == ("≥ 0.0100", "[0.0050, 0.0150]", "", "")
    markdown, page = to_markdown(report), to_page(report)
    assert "**Long texts**" in markdown
    for text in (markdown, page):
        assert "not measured at the context window of 131072 tokens" in text.replace("Not", "not")
        assert "KL after 4081 to 4112 tokens" in text
    assert "As close on long texts" in page


def test_a_device_judges_it_the_same() -> None:
    report = {**SECTIONS, "long_context": section(stretch(interval(0.3, 0.1)))}
    checks = make_checks({"tolerances": {"kl_mean": 0.05}, "budgets": {}}, report)
    on_device = finish_on_device(sections(long_context=report["long_context"], checks=checks))
    here = make(long_context=report["long_context"], checks=checks)
    assert on_device["checks"] == here["checks"]
    assert on_device["verdict"] == here["verdict"] == "fail"
    json.dumps(on_device, allow_nan=False)


def test_the_choice_of_widths_counts_it() -> None:
    check = check_of(judged(stretch(interval(0.3, 0.1))))
    assert check is not None
    assert _share_of_limit(check) == pytest.approx(8.0)


def test_an_emulated_run_read_no_long_text() -> None:
    report = make_report(long_context=section(stretch(**{"kl": None, **NOT_FINITE})))
    fidelity = report.fidelity.model_dump()
    emulated = {"cpu": "Haswell", "emulator": "QEMU", "items_total": 240, "fidelity": fidelity,
                "task_metrics": {}, "tokenizer": None, "reason": None}  # fmt: skip
    checks = [{"name": "emulated_finite_outputs", "limit": 0.0}]
    found = make(long_context=report.long_context.model_dump() if report.long_context else None,
                 emulated=emulated, checks=checks)  # fmt: skip
    assert found["checks"][0]["value"] == 0
