"""The emulated self-test, run by this host's own Python in place of an emulator's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.environments.emulator import Emulation
from edgetune.errors import MissingError, StepFailedError, UsageError
from edgetune.files import read_json
from edgetune.report.markdown import to_markdown
from edgetune.report.schema import parse_report
from edgetune.report.terminal import summary_lines, table_rows
from edgetune.report.verdict import judge
from edgetune.runtime.manifest import choose_variant, read_manifest
from edgetune.validate import emulated, package, rounds
from edgetune.validate.emulated import choose_items, measure_emulated
from edgetune.validate.package import validate_package
from edgetune.validate.self_test import load_self_test, take_items
from edgetune.validate.validate import validate_step
from tests.tiny_package import VARIANT, copy_of, sign
from tests.validate.fakes import make_item, make_self_test

pytestmark = pytest.mark.line

EMULATION = Emulation("x86_64", "Haswell", "", "/bin/qemu", "qemu-x86_64 7.2", None, ())


@pytest.fixture(autouse=True)
def _no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def guest(_emulation: Emulation) -> Iterator[tuple[list[str], dict[str, str]]]:
        root = Path(__file__).resolve().parent.parent.parent
        yield [sys.executable], {**os.environ, "PYTHONPATH": str(root)}

    monkeypatch.setattr(emulated, "guest", guest)
    monkeypatch.setattr(package, "find_emulation", lambda _device, _host: EMULATION)
    monkeypatch.setattr(rounds, "BLOCK_S", 0.005)
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)


def _measure(folder: Path, reference: Path | None = None, **more: Any) -> dict[str, Any]:
    manifest = read_manifest(folder)
    self_test = load_self_test(folder / "self_test")
    variant = choose_variant(manifest, VARIANT, None)
    emulation = more.pop("emulation", EMULATION)
    return measure_emulated(
        manifest,
        variant,
        self_test,
        emulation,
        "my-box",
        folder / "self_test",
        reference,
        1,
        lambda _: None,
    )


def test_the_child_finds_what_this_process_finds(package: Path) -> None:
    whole = validate_package(package, "generic-x86-64", emulate=True)
    section = whole["emulated"]
    for key in ("kl_mean", "retention", "top1_agreement", "perplexity_ratio", "items", "flips"):
        assert section["fidelity"][key] == whole["fidelity"][key], key
    assert section["task_metrics"] == whole["task_metrics"]
    assert section["tokenizer"] == whole["tokenizer"]
    assert section["cpu"] == "Haswell"
    assert "emulated by qemu-x86_64 7.2" in section["fidelity"]["measured_on"]
    assert section["versions"]["onnxruntime-genai"]
    assert whole["evidence"]["emulated"] is True
    assert whole["verdict"] == "pass"


def test_with_the_reference_at_hand_the_whole_vocabulary_is_compared(package: Path) -> None:
    bound = _measure(package)["fidelity"]
    whole = _measure(package, package.parent / "reference")["fidelity"]
    assert (bound["kl_kind"], whole["kl_kind"]) == ("top-k lower bound", "whole vocabulary")
    assert bound["kl_mean"]["value"] <= whole["kl_mean"]["value"]


def test_a_report_says_that_figures_are_emulated(package: Path) -> None:
    report = validate_package(package, "generic-x86-64", emulate=True)
    labels = [row[0] for row in table_rows(report)]
    assert "KL from trained, nats" in labels
    assert "emulated: KL from trained, nats" in labels
    line = next(line for line in summary_lines(report) if line.startswith("emulated"))
    assert "6 of 6 items" in line
    assert "Haswell by qemu-x86_64 7.2: not the device, and no times" in line
    assert "Emulated: 6 of 6 items" in to_markdown(report)
    names = [check["name"] for check in report["checks"]]
    assert "emulated_kl_mean" in names
    # All items ran, so the task metric is a question as well.
    assert "emulated_exact_match_drop" in names


def test_a_package_that_is_worse_there_fails(package: Path) -> None:
    report = validate_package(package, "generic-x86-64", emulate=True)
    worse = {"value": 10.0, "low": 9.0, "high": 11.0}
    report["emulated"]["fidelity"]["kl_mean"] = worse
    judgement = judge(parse_report(report))
    assert judgement.verdict == "fail"
    check = judgement.of("emulated_kl_mean")
    assert check is not None
    assert check.verdict == "fail"
    lost = [line for line in summary_lines(report) if line.startswith("lost")]
    assert lost == [
        "lost     on the emulated Haswell KL from the trained model is 10.00 nats (limit 0.05)"
    ]


def test_some_of_the_items_are_no_question_of_the_task_metric(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "MOST_TOKENS", 1)
    report = validate_package(package, "generic-x86-64", emulate=True)
    assert report["emulated"]["fidelity"]["items"] == 5
    names = [check["name"] for check in report["checks"]]
    assert "emulated_kl_mean" in names
    assert "emulated_exact_match_drop" not in names


def test_an_emulator_that_fails_is_reported_or_raised(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(_emulation: Emulation) -> Iterator[tuple[list[str], dict[str, str]]]:
        yield ["/bin/sh", "-c", "echo illegal instruction >&2; exit 132"], dict(os.environ)

    monkeypatch.setattr(emulated, "guest", broken)
    with pytest.raises(StepFailedError, match="its last words: illegal instruction"):
        validate_package(package, "generic-x86-64", emulate=True)
    report = _step(package, tmp_path, emulation=EMULATION.as_json())
    assert report["emulated"]["fidelity"] is None
    assert "illegal instruction" in report["emulated"]["reason"]
    assert report["evidence"]["emulated"] is False
    assert any("not measured" in line for line in summary_lines(report) if "emulated" in line)


def test_without_an_emulator_the_report_says_how_to_get_one(package: Path, tmp_path: Path) -> None:
    reason = "there is no aarch64 environment; make it: edgetune doctor --make aarch64"
    report = _step(package, tmp_path, not_emulated=reason)
    assert report["emulated"]["reason"] == reason
    assert f"emulated not measured: {reason}" in summary_lines(report)
    assert report["verdict"] == "pass"
    assert not [c for c in report["checks"] if c["name"].startswith("emulated")]


def test_latency_never_comes_from_an_emulator(package: Path, tmp_path: Path) -> None:
    report = _step(package, tmp_path, emulation=EMULATION.as_json())
    assert report["emulated"]["fidelity"]["items"] == 6
    assert report["latency"]["candidate"] is None
    assert report["latency"]["reason"].endswith("an emulator is no measure of time")
    assert not {"latency", "load_s", "seconds"} & set(report["emulated"])


def test_a_processor_that_is_not_what_the_profile_asks_for_is_refused(package: Path) -> None:
    lacking = Emulation("x86_64", "Haswell", "", "q", "qemu 7.2", None, ("no_such_flag",))
    with pytest.raises(UsageError, match=r"my-box: Haswell in qemu 7\.2 has no no_such_flag"):
        _measure(package, emulation=lacking)


def test_a_package_that_does_not_open_there_is_told(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    (copy / VARIANT / "model.onnx").write_bytes(b"not a graph")
    sign(copy)
    from edgetune.errors import InputRefusedError

    with pytest.raises(InputRefusedError, match="onnxruntime-genai cannot open it"):
        _measure(copy)


def test_without_a_device_that_can_be_emulated_there_is_a_hint(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.validate.package._can_be_emulated", lambda _name: False)
    with pytest.raises(UsageError, match="none of its devices can be emulated") as caught:
        validate_package(package, emulate=True)
    assert caught.value.hint == "name another one: --emulate raspberry-pi-5"


def test_a_missing_emulator_ends_a_validation_that_asks_for_one(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_device: object, _host: object) -> Emulation:
        msg = "qemu-aarch64 is not installed here"
        raise MissingError(msg)

    monkeypatch.setattr("edgetune.validate.package.find_emulation", missing)
    with pytest.raises(MissingError, match="not installed"):
        validate_package(package, "raspberry-pi-5", emulate=True)


def test_items_are_spread_evenly_and_the_same_every_time() -> None:
    self_test = make_self_test([make_item(n, "a", "a") for n in range(1000)])
    numbers = choose_items(self_test)
    assert numbers == choose_items(self_test)
    assert sum(4 for _ in numbers) <= emulated.MOST_TOKENS
    assert numbers[0] == 0
    assert len(set(np.diff(numbers).tolist())) <= 2
    assert choose_items(make_self_test([make_item(0, "a", "a")])) == [0]


def test_taken_items_keep_their_positions() -> None:
    self_test = make_self_test([make_item(n, "a", "a") for n in range(4)])
    self_test.target_logprob[:] = np.arange(8)
    taken, kept = take_items(self_test, [1, 3])
    assert kept.tolist() == [2, 3, 6, 7]
    assert taken.item_of.tolist() == [0, 0, 1, 1]
    assert taken.target_logprob.tolist() == [2, 3, 6, 7]
    assert [item.id for item in taken.items] == ["1", "3"]
    assert taken.positions(1) == slice(2, 4)


def _step(package: Path, out: Path, **more: Any) -> dict[str, Any]:
    arguments = {
        "package": str(package),
        "device": {"name": "raspberry-pi-5", "here": False, "threads": 1, "arch": "aarch64"},
        "variant": VARIANT,
        "identifier": "tiny@raspberry-pi-5",
        "evidence": {"built": True},
        **more,
    }
    validate_step(arguments, out, lambda _: None)
    report: dict[str, Any] = read_json(out / "report.json")
    return report
