"""A report against its baseline: what got worse fails, what did not passes, what cannot be told is
neither."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError
from edgetune.report.gate import Gated, gate_reports
from edgetune.report.gate_table import BASELINE_COLUMNS, baseline_rows, gate_lines
from edgetune.report.regression import Margins
from edgetune.report.verdict import Judged
from tests.report.compared import found, whole

KL, EXACT = "kl_mean_regression", "exact_match_regression"
TIME, BYTES = "answer_ms_regression", "package_bytes_regression"


def gated(tmp_path: Path, new: Any, old: Any, margins: Margins | None = None) -> Gated:
    pair = [found(tmp_path / "new.json", new)], [found(tmp_path / "old.json", old)]
    return gate_reports(*pair, margins or Margins()).gated[0]


def check(one: Gated, name: str) -> Judged:
    judged = one.judgement.of(name)
    assert judged is not None
    return judged


def test_identical_models_pass_with_finite_bounds(tmp_path: Path) -> None:
    one = gated(tmp_path, whole(), whole())
    assert one.judgement.verdict == "pass"
    for name in (KL, EXACT, TIME, BYTES):
        figure = check(one, name).figure
        assert figure is not None
        assert all(math.isfinite(v) for v in (figure.value, figure.low, figure.high))
        assert figure.low <= figure.value <= figure.high
    kl = check(one, KL).figure
    assert kl is not None
    assert (kl.value, kl.low, kl.high) == (0, 0, 0)
    assert one.comparison is not None
    assert one.comparison.flips == {
        "answers": 240, "changed": 0, "n": 240, "right_before": 228, "right_now": 228, "lost": 0,
        "gained": 0, "p_value": 1.0,
    }  # fmt: skip


WORSE = {
    EXACT: {"wrong": range(30)},
    KL: {"kl": 0.03},
    TIME: {"answer_ms": 225.0},
    BYTES: {"size__package_bytes": 6_400_000},
}


@pytest.mark.parametrize("name", WORSE)
def test_each_regression_fails_alone_and_its_inverse_passes(tmp_path: Path, name: str) -> None:
    # Limits of the report itself are wide: the regression alone decides.
    limits = [{"name": "kl_mean", "limit": 1.0}]
    worse, same = whole(checks=limits, **WORSE[name]), whole(checks=limits)
    one = gated(tmp_path, worse, same)
    failed = [c.name for c in one.judgement.checks if c.verdict == "fail"]
    assert failed == [name]
    better = gated(tmp_path, same, worse)
    assert {c.verdict for c in better.judgement.checks} == {"pass"}


def test_flips_are_shown_with_the_exact_mcnemar_test(tmp_path: Path) -> None:
    one = gated(tmp_path, whole(wrong=[*range(5, 12), *range(20, 30)]), whole())
    line = next(line for line in gate_lines(one) if "since the baseline" in line)
    assert line == (
        "flips    since the baseline 15 of 240 answers changed: 10 right ones became wrong, "
        "5 wrong ones right; McNemar p = 0.302"
    )
    figure = check(one, EXACT).figure
    assert figure is not None
    assert figure.value == pytest.approx(5 / 240)
    assert check(one, EXACT).verdict == "inconclusive"


def test_what_noise_hides_is_inconclusive_and_says_what_would_decide(tmp_path: Path) -> None:
    one = gated(tmp_path, whole(items=60), whole(items=60))
    exact = check(one, EXACT)
    assert exact.verdict == "inconclusive"
    assert exact.reason == (
        "the limit lies between the bounds: about 136 items would decide, 60 were measured"
    )
    many = gated(tmp_path, whole(items=136), whole(items=136))
    assert check(many, EXACT).verdict == "pass"
    noisy = gated(tmp_path, whole(noise=0.2), whole(noise=0.2))
    assert check(noisy, TIME).verdict == "inconclusive"
    assert "quieter machine" in (check(noisy, TIME).reason or "")


def test_too_few_rounds_or_items_never_pass(tmp_path: Path) -> None:
    few = gated(tmp_path, whole(rounds=2), whole())
    assert check(few, TIME).verdict == "inconclusive"
    assert check(few, TIME).reason == "2 rounds are too few, 3 are the least that can tell"
    assert gated(tmp_path, whole(rounds=6), whole(rounds=5)).judgement.verdict == "pass"
    four = gated(tmp_path, whole(items=4, wrong=[]), whole(items=4, wrong=[]))
    assert check(four, KL).verdict == "inconclusive"


def test_the_machine_s_drift_cancels_where_both_have_the_unconverted_model(tmp_path: Path) -> None:
    slow = whole(answer_ms=240.0, reference_ms=960.0)
    one = gated(tmp_path, slow, whole())
    assert check(one, TIME).verdict == "pass"
    rows = {row[0]: row for row in baseline_rows(one)}
    assert rows["time to answer / unconverted"][1:3] == ("0.250", "0.250")
    assert rows["time to answer, rounds, ms"][1:4] == ("200.0", "240.0", "× 1.20 [1.17, 1.23]")
    assert rows["time to answer, rounds, ms"][-1] == ""
    # The same times fail where nothing tells that the machine was slower.
    alone: dict[str, Any] = {"latency__reference": None, "latency__ratio": None}
    one = gated(tmp_path, whole(answer_ms=240.0, **alone), whole(**alone))
    assert check(one, TIME).verdict == "fail"
    # Another torch is another measure.
    other = whole(answer_ms=240.0, reference_ms=960.0, environment__versions={"torch": "2.11"})
    assert check(gated(tmp_path, other, whole()), TIME).verdict == "fail"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"environment__fingerprint": "def"}, "measured on another machine (abc, this one is def)"),
        ({"environment__threads": 4}, "measured with threads 2, this report with 4"),
        ({"latency__prompt_tokens": 64}, "measured with prompt_tokens 128, this report with 64"),
        ({"latency": {"reference": None, "candidate": None, "ratio": None, "reason": "no board"}},
         "this report has no latency: no board"),
    ],
)  # fmt: skip
def test_times_of_another_machine_are_not_measured_and_the_rest_is(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    new, old = whole(**changes), whole()
    one = gated(tmp_path, new, old)
    assert check(one, TIME).verdict == "not measured"
    assert reason in (check(one, TIME).reason or "")
    assert check(one, EXACT).verdict == check(one, KL).verdict == "pass"
    assert one.judgement.verdict == "pass"
    required = gated(tmp_path, new, old, Margins(require_latency=True))
    assert required.judgement.verdict == "inconclusive"


def test_rounds_may_be_missing_but_not_bounds(tmp_path: Path) -> None:
    bounded = {"latency__candidate__rounds_ms": [], "latency__reference__rounds_ms": []}
    assert check(gated(tmp_path, whole(**bounded), whole()), TIME).verdict == "pass"
    noisy = gated(tmp_path, whole(noise=0.2, **bounded), whole())
    assert check(noisy, TIME).verdict == "inconclusive"
    bare = {**bounded, "latency__candidate__intervals": {}, "latency__reference__intervals": {}}
    one = gated(tmp_path, whole(latency__ratio=None, **bare), whole())
    assert check(one, TIME).verdict == "not measured"
    assert "neither rounds nor bounds" in (check(one, TIME).reason or "")


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_rounds_that_are_no_times_are_refused(tmp_path: Path, bad: float) -> None:
    with pytest.raises(InputRefusedError, match="a time to answer that is not above 0"):
        gated(tmp_path, whole(latency__candidate__rounds_ms=[200.0, bad, 200.0]), whole())
    bare = whole(latency__ratio={"value": bad, "low": bad, "high": bad},
                 latency__candidate__rounds_ms=[])  # fmt: skip
    with pytest.raises(InputRefusedError, match="a time to answer that is not above 0"):
        gated(tmp_path, bare, whole())


def test_without_items_the_accuracy_is_not_measured_and_never_passes(tmp_path: Path) -> None:
    one = gated(tmp_path, whole(), whole(per_item=None))
    assert check(one, KL).verdict == check(one, EXACT).verdict == "not measured"
    assert "the baseline does not say what each item gave" in (check(one, KL).reason or "")
    assert one.judgement.verdict == "inconclusive"


def test_a_bound_of_the_top_k_is_no_measure_for_the_whole_vocabulary(tmp_path: Path) -> None:
    one = gated(tmp_path, whole(), whole(fidelity__kl_kind="top-k lower bound"))
    assert check(one, KL).verdict == "not measured"
    assert "make both by build, or both by validate" in (check(one, KL).reason or "")


def test_items_that_differ_though_the_digests_agree_are_refused(tmp_path: Path) -> None:
    ids = [f"x{number}" for number in range(240)]
    with pytest.raises(InputRefusedError, match="its items are not those of"):
        gated(tmp_path, whole(per_item__ids=ids), whole())


def test_margins_move_the_limits(tmp_path: Path) -> None:
    slow = whole(answer_ms=216.0)
    assert check(gated(tmp_path, slow, whole(), Margins(slowdown=0.05)), TIME).verdict == "fail"
    assert check(gated(tmp_path, slow, whole()), TIME).verdict == "pass"
    tight = gated(tmp_path, whole(), whole(), Margins(drop=0.01))
    assert check(tight, EXACT).verdict == "inconclusive"


def test_every_row_of_the_table_has_a_cell_for_every_column(tmp_path: Path) -> None:
    for new in (whole(), whole(per_item=None), whole(environment__fingerprint="def")):
        rows = baseline_rows(gated(tmp_path, new, whole()))
        assert {len(row) for row in rows} == {len(BASELINE_COLUMNS)}
        assert len(rows) >= 4
