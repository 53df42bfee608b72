"""The package's long texts, on the tiny package: measured, refused where parts do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune import statistics
from edgetune.errors import InputRefusedError
from edgetune.files import dump_json, read_json, write_text
from edgetune.report.questions import LONG_CONTEXT
from edgetune.runtime.decoder import score
from edgetune.runtime.manifest import choose_variant, read_manifest
from edgetune.runtime.session import OpenPackage
from edgetune.validate import long_context as module
from edgetune.validate.fidelity import Positions
from edgetune.validate.job import Job
from edgetune.validate.long_context import long_context, stretch_figures
from edgetune.validate.validate import make_report
from tests.tiny_package import copy_of, sign

pytestmark = pytest.mark.line
HEADS = [
    {"what": "sliding window", "at": 24, "first": 9, "last": 40, "bytes": 1000},
    {"what": "context window", "at": 256, "first": 225, "last": 256, "bytes": 1000},
]


@pytest.fixture(scope="module")
def texts(package: Path, opened: OpenPackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-test's folder whose long texts are what the package itself says."""
    self_test = tmp_path_factory.mktemp("long") / "self_test"
    folder = self_test / "long_context"
    folder.mkdir(parents=True)
    text = np.random.default_rng(0).integers(0, 250, 257).tolist()
    lines, rows, targets = [], [], []
    for head in HEADS:
        prompt, target = text[: head["first"]], text[head["first"] : head["last"] + 1]  # type: ignore[misc]
        rows.append(score(opened, prompt, target))
        targets += target
        lines.append({
            "id": f"{head['what']} {head['at']}", "prompt_ids": prompt, "target_ids": target,
            "reference_answer_logprob": -1.0,
        })  # fmt: skip
    logprobs = np.concatenate(rows)
    top = np.argsort(-logprobs, axis=1)[:, :64]
    top_logprobs = np.take_along_axis(logprobs, top, axis=1)
    rest = np.log(np.maximum(1 - np.exp(top_logprobs.astype(np.float64)).sum(axis=1), 1e-30))
    arrays = {
        "top_ids": top.astype("<i4"), "top_logprobs": top_logprobs,
        "rest_logprob": rest.astype("<f4"),
        "target_logprob": logprobs[np.arange(len(targets)), targets],
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
    write_text(
        folder / "items.jsonl", "".join(dump_json(x).replace("\n", "") + "\n" for x in lines)
    )
    write_text(folder / "tokenizer_cases.json", "{}\n")
    facts = {"items": 2, "positions": 64, "top_k": 64, "vocabulary_size": opened.vocabulary_size}
    write_text(folder / "self_test.json", dump_json(facts))
    write_lengths(folder, HEADS)
    return self_test


def write_lengths(folder: Path, stretches: Any, **changes: Any) -> None:
    value = {"window": 256, "stretches": stretches, "not_measured": ["x"], **changes}
    write_text(folder / "lengths.json", dump_json(value))


def quiet(_: str) -> None:
    """Progress that nobody looks at."""


def test_the_same_model_has_no_divergence(opened: OpenPackage, texts: Path) -> None:
    told: list[str] = []
    found = long_context(opened, texts, told.append)
    assert found is not None
    assert told == ["long context: 40 tokens", "long context: 256 tokens"]
    assert (found["window"], found["kl_kind"]) == (256, "top-k lower bound")
    assert found["not_measured"] == ["x"]
    for head, row in zip(HEADS, found["stretches"], strict=True):
        assert {k: row[k] for k in ("what", "at", "first", "last")} == {
            k: v for k, v in head.items() if k != "bytes"
        }
        assert row["positions"] == 32
        assert row["non_finite_positions"] == 0
        assert row["kl_mean"]["high"] < 1e-5
        assert row["top1_agreement"]["value"] == 1
        assert row["reason"] is None


def test_a_reference_of_other_tokens_is_refused(
    opened: OpenPackage, texts: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(texts, tmp_path / "self_test"))
    file = other / "long_context" / "top_ids.npy"
    np.save(file, (np.load(file) + 1) % 256)
    with pytest.raises(InputRefusedError, match=r"its targets are not those of target_logprob"):
        long_context(opened, other, quiet)


@pytest.mark.parametrize("wrong", [np.nan, -5.6])
def test_outputs_that_are_garbage_are_seen(
    opened: OpenPackage, texts: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """At the positions past the threshold alone: not finite, or the same for every token."""

    def broken(*given: Any) -> Any:
        rows = score(*given)
        rows[16:] = wrong
        return rows

    monkeypatch.setattr(module, "score", broken)
    found = long_context(opened, texts, quiet)
    assert found is not None
    for row in found["stretches"]:
        if np.isnan(wrong):
            assert (row["non_finite_positions"], row["kl_mean"]) == (16, None)
        else:
            assert row["non_finite_positions"] == 0
            assert row["kl_mean"]["low"] > 0.3


def test_a_package_without_long_texts_has_no_section(opened: OpenPackage, package: Path) -> None:
    assert long_context(opened, package / "self_test", quiet) is None


def test_where_nothing_fitted_only_the_reasons_are_told(
    opened: OpenPackage, tmp_path: Path
) -> None:
    write_lengths(tmp_path / "long_context", [])
    assert long_context(opened, tmp_path, quiet) == {
        "window": 256, "kl_kind": "top-k lower bound", "stretches": [], "not_measured": ["x"]
    }  # fmt: skip


def test_a_device_without_the_memory_says_so(
    opened: OpenPackage, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 999)
    found = long_context(opened, texts, quiet)
    assert found is not None
    for row in found["stretches"]:
        assert row["kl_mean"] is row["top1_agreement"] is None
        assert row["reason"] == "it takes about 0.0 GB (predicted), 0.0 GB are free here"


@pytest.mark.parametrize(
    ("stretches", "changes", "words"),
    [
        (HEADS[:1], {}, "its texts are not those of lengths.json"),
        ([{**HEADS[0], "first": 10}, HEADS[1]], {}, "its texts are not those of lengths.json"),
        ([{**HEADS[0], "first": "9"}, HEADS[1]], {}, "not the lengths of a long context"),
        (HEADS, {"window": 0}, "not the lengths of a long context"),
        (HEADS, {"not_measured": [1]}, "not the lengths of a long context"),
        ([{"what": "sliding window"}], {}, r"not the lengths of a long context \('at'\)"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    opened: OpenPackage, texts: Path, tmp_path: Path, stretches: Any, changes: Any, words: str
) -> None:
    copy = Path(shutil.copytree(texts, tmp_path / "self_test"))
    write_lengths(copy / "long_context", stretches, **changes)
    with pytest.raises(InputRefusedError, match=words):
        long_context(opened, copy, quiet)


def test_half_of_a_stretch_beyond_its_threshold_is_no_chance() -> None:
    """What is lost beyond the threshold alone has bounds that say how much, not whether."""
    kl = np.array([0.0] * 16 + [0.2, 0.3, 0.2, 0.3] * 4)
    positions = Positions(kl, np.zeros(32), kl == 0)
    figures = stretch_figures(positions, np.arange(32) >= 16)
    assert figures["kl_mean"] == {"value": 0.125, "low": 0.125, "high": 0.125}
    together = stretch_figures(positions, np.zeros(32, dtype=bool))
    assert together["kl_mean"]["low"] < 0.08
    assert figures["top1_agreement"]["value"] == 0.5


def test_outputs_that_are_not_finite_have_no_figure() -> None:
    kl = np.full(32, 0.1)
    kl[3] = np.nan
    figures = stretch_figures(Positions(kl, kl, kl > 0), np.zeros(32, dtype=bool))
    assert figures == {
        "positions": 32, "non_finite_positions": 1, "kl_mean": None, "top1_agreement": None,
        "reason": "the package's output is not finite at 1 of 32 positions",
    }  # fmt: skip


def test_strata_of_one_are_a_ratio_of_sums() -> None:
    values, counts = np.array([1.0, 4.0, 2.0, 7.0]), np.array([4.0, 4.0, 4.0, 4.0])
    one = statistics.stratified_ratio([(values, counts)])
    assert one == statistics.ratio_of_sums(values, counts)
    with pytest.raises(ValueError, match="positive denominators"):
        statistics.stratified_ratio([(values, 0 * counts)])
    with pytest.raises(ValueError, match="needs pairs"):
        statistics.stratified_ratio([])


def test_a_report_has_it_and_asks_for_it(package: Path, texts: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "tiny")
    shutil.copytree(texts / "long_context", copy / "self_test" / "long_context")
    sign(copy)
    manifest = read_manifest(copy)
    job = Job("tiny@elsewhere", "elsewhere", False, 1, choose_variant(manifest, None, None))
    report = make_report(manifest, job, quiet)
    assert [row["last"] for row in report["long_context"]["stretches"]] == [40, 256]
    check = next(c for c in report["checks"] if c["name"] == LONG_CONTEXT)
    assert (check["verdict"], check["limit"]) == ("pass", 0.05)
    # The texts are a part of what a report's reference is.
    plain = make_report(read_manifest(package), job, quiet)
    assert plain["long_context"] is None
    assert plain["inputs"]["self_test"] != report["inputs"]["self_test"]
    write_lengths(copy / "self_test" / "long_context", HEADS, window=255)
    assert read_json(copy / "self_test" / "long_context" / "lengths.json")["window"] == 255
    with pytest.raises(InputRefusedError, match="changed"):
        read_manifest(copy)
