"""The certificate and the erased modules as people read them."""

from __future__ import annotations

from typing import Any

from edgetune.report.markdown import to_markdown
from edgetune.report.survival_words import SURVIVAL_COLUMNS, survival_rows
from edgetune.report.terminal import summary_lines
from tests.report.sample import interval, make, make_report

FAILED = {"fidelity__retention": interval(0.5, 0.01)}


def module(name: str, snr: float | None, **more: Any) -> dict[str, Any]:
    row = {"values": 64, "delta_relative": 0.002, "step": 0.08, "below_step": 0.99, "snr": snr}
    return {"name": name, **row, **more}


def survival(*modules: dict[str, Any]) -> dict[str, Any]:
    return {"modules": list(modules), "not_found": [], "reason": None}


def candidate(onto: str | None, kl: float) -> dict[str, Any]:
    figures = {"kl_mean": interval(kl), "top1_agreement": interval(0.9)}
    return {"onto": onto, **figures, "parity_max_abs": 1e-6, "parity_against": "trained model"}


def merged(*candidates: dict[str, Any], chosen: str | None) -> dict[str, Any]:
    told = {"parity_max_abs": 1e-6, "tensors_used": 8, "tensors_total": 8, "onto": chosen}
    return {
        **told,
        "certificate": {"chosen": chosen, "positions": 9, "candidates": list(candidates)},
    }


def test_a_failed_report_names_the_erased_modules() -> None:
    modules = [module(name, 0.01) for name in "abcd"] + [module("e", 7.0)]
    value = make(**FAILED, survival=survival(*modules))
    (line,) = [text for text in summary_lines(value) if "erased" in text]
    assert line == (
        "lost     erased in: a, b, c …: the quantization's noise is larger than the change that "
        "the fine-tune made (4 of 5 modules)"
    )
    assert "- erased in: a, b, c" in to_markdown(value)


def test_a_retention_below_0_is_said_in_words() -> None:
    lines = summary_lines(make(fidelity__retention=interval(-4.6, 0.1)))
    assert (
        "lost     the package keeps nothing of what the fine-tune changed (limit 95 %): it is "
        "5.6 × as far from the trained model as the base alone is"
    ) in lines


def test_modules_that_were_run_are_told_with_what_they_keep() -> None:
    run = [
        module("c", 0.03, kl_mean=interval(0.05), retention=interval(-2.3)),
        module("b", 0.02, kl_mean=interval(0.01), retention=interval(0.6)),
        module("a", 0.01, kl_mean=interval(0.001), retention=interval(0.99)),
    ]
    lines = summary_lines(make(**FAILED, survival=survival(*run)))
    assert [text for text in lines if "of 3 modules" in text] == [
        "lost     erased in: a, b, c: the quantization's noise is larger than the change that the "
        "fine-tune made (3 of 3 modules)",
        "lost     each quantized alone, these keep less than the limit: c nothing, b 60.0 % "
        "(2 of 3 modules)",
    ]


def test_where_none_is_erased_those_are_named_that_keep_least() -> None:
    value = make(**FAILED, survival=survival(module("a", 2.0), module("b", 7.0)))
    assert "lost     least is left in: a, b" in summary_lines(value)


def test_nothing_is_named_where_nothing_failed_or_is_known() -> None:
    fine = make(survival=survival(module("a", 0.1)))
    slow = make(latency__ratio=interval(2.0, 0.1), survival=survival(module("a", 0.1)))
    for value in (fine, slow, make(**FAILED), make(**FAILED, survival=survival())):
        assert not [t for t in summary_lines(value) if "erased" in t or "is left in" in t]


def test_the_table_says_what_was_not_run() -> None:
    alone = {"kl_mean": interval(0.0123), "retention": interval(-0.5)}
    report = make_report(survival=survival(module("a", 0.01, **alone), module("b", None)))
    one, other = survival_rows(report)
    assert len(one) == len(SURVIVAL_COLUMNS)
    assert one == ("a", "0.20 %", "0.08", "99.0 %", "0.01", "0.0123", "-50.0 %")
    assert other[4:] == ("–", "not measured", "not measured")
    text = to_markdown(report)
    assert "the worst 2 of 2 modules" in text


def test_both_merges_are_shown_with_the_one_that_was_taken() -> None:
    both = [candidate("dequantized", 1e-9), candidate("original", 0.12)]
    lines = summary_lines(make(merge=merged(*both, chosen="dequantized")))
    assert [text for text in lines if text.startswith("merge")] == [
        "merge    onto the dequantized base: KL from the trained model 1.0e-09 nats, top-1 "
        "agreement 90.00 %, logits within 1.0e-06 of the trained model; taken",
        "merge    onto the original base: KL from the trained model 0.1200 nats, top-1 agreement "
        "90.00 %, logits within 1.0e-06 of the trained model",
    ]
    (plain,) = [
        text
        for text in summary_lines(make(merge=merged(candidate(None, 0.0), chosen=None)))
        if text.startswith("merge")
    ]
    assert plain.startswith("merge    the merged checkpoint: KL")
