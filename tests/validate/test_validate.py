"""The whole step on a tiny package: what passes, what fails, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.errors import InputRefusedError, UsageError
from edgetune.files import digests_of_folder, dump_json
from edgetune.report.contradictions import contradictions
from edgetune.report.schema import load_report, parse_report
from edgetune.report.verdict import judge
from edgetune.runtime.manifest import read_manifest
from edgetune.validate import rounds
from edgetune.validate.package import choose_device, exit_code_of, validate_package
from edgetune.validate.validate import validate_step
from tests.tiny import VOCABULARY
from tests.tiny_package import VARIANT, copy_of, sign

pytestmark = pytest.mark.line


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BLOCK_S", 0.005)
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    monkeypatch.setattr(rounds, "MOST_LAUNCHES", 1)
    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)


def _arguments(package: Path, **changes: Any) -> dict[str, Any]:
    device = {"name": "this-machine", "here": True, "threads": 1, "arch": "x86_64"}
    merge = {"parity_max_abs": 1e-6, "tensors_used": 4, "tensors_total": 4, "onto": None}
    return {
        "package": str(package),
        "device": device,
        "variant": VARIANT,
        "identifier": "tiny@this-machine",
        "reference": None,
        "checkpoint": None,
        "steps": [{"name": "merge", "seconds": 1.0, "peak_rss_mb": None, "cached": True}],
        "merge": merge,
        "evidence": {"built": True},
        **changes,
    }


def _validate(package: Path, out: Path, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    facts = validate_step(_arguments(package, **changes), out, lambda _: None)
    report = load_report(out / "report.json")
    assert facts["verdict"] == report.verdict == judge(report).verdict
    return report.model_dump(mode="json")


def test_a_sound_package_passes(package: Path, tmp_path: Path) -> None:
    before = digests_of_folder(package)
    report = _validate(package, tmp_path / "out", reference=str(package.parent / "reference"))
    assert report["verdict"] == "pass"
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts == {
        "retention": "pass",
        "kl_mean": "pass",
        "exact_match_drop": "pass",
        "tokenizer_parity": "pass",
        "finite_outputs": "pass",
        "time_to_answer_ratio": "not measured",
        "ttft_ms": "pass",
        "package_bytes": "pass",
    }
    assert report["fidelity"]["kl_kind"] == "whole vocabulary"
    assert report["providers"]["coverage"] == 1.0
    assert report["merge"]["tensors_used"] == 4
    assert report["size"]["base_bytes"] == 1_000_000
    assert report["evidence"] == {
        "built": True,
        "opened": True,
        "executed": True,
        "on_device": True,
        "emulated": False,
        "whole_vocabulary": True,
        "task_metric_measured": True,
        "latency_measured": True,
        "reference_latency_measured": False,
    }
    assert digests_of_folder(package) == before


def test_the_same_package_gives_the_same_figures(package: Path, tmp_path: Path) -> None:
    one, two = (_validate(package, tmp_path / name) for name in ("a", "b"))
    same = ("fidelity", "task_metrics", "examples", "per_item", "tokenizer", "size", "inputs")
    for key in (*same, "self_test", "sampling"):
        assert one[key] == two[key]
    answers = [(tmp_path / name / "answers.json").read_bytes() for name in ("a", "b")]
    assert answers[0] == answers[1]
    assert one["sampling"] == {"seed": 0, "resamples": 2000, "text_seed": None}


def test_what_each_item_gave_adds_up_to_the_whole(package: Path, tmp_path: Path) -> None:
    report = _validate(package, tmp_path / "out")
    items = report["per_item"]
    assert len(items["ids"]) == report["fidelity"]["items"]
    assert sum(items["positions"]) == report["fidelity"]["positions"]
    pairs = zip(items["kl_mean"], items["positions"], strict=True)
    mean = sum(kl * count for kl, count in pairs) / sum(items["positions"])
    assert mean == pytest.approx(report["fidelity"]["kl_mean"]["value"], rel=1e-12)
    right = [value for value in items["exact"] if value is not None]
    metric = report["task_metrics"]["exact_match"]
    assert (len(right), sum(right) / len(right)) == (metric["n"], metric["candidate"])
    # No text of the items or of the answers travels in it, only digests of the answers.
    assert all(answer is None or len(answer) == 16 for answer in items["answers"])
    assert contradictions(parse_report(report)) == []


def test_a_package_alone_has_a_lower_bound_of_the_kl(package: Path, tmp_path: Path) -> None:
    reference = str(package.parent / "reference")
    alone = _validate(package, tmp_path / "a")["fidelity"]
    whole = _validate(package, tmp_path / "b", reference=reference)["fidelity"]
    assert alone["kl_kind"] == "top-k lower bound"
    assert 0 < alone["kl_mean"]["value"] <= whole["kl_mean"]["value"]


def test_what_is_left_of_each_module_goes_into_the_report(package: Path, tmp_path: Path) -> None:
    row = {"name": "a", "values": 4, "delta_relative": 0.1, "step": 0.1, "below_step": 1.0}
    left = {"modules": [{**row, "snr": 0.5}], "not_found": [], "reason": None}
    assert _validate(package, tmp_path / "alone")["survival"] is None
    quick = _validate(package, tmp_path / "quick", survival=left)["survival"]
    assert quick["modules"] == [{**left["modules"][0], "kl_mean": None, "retention": None}]
    assert quick["not_run"] == "asked for with --thorough"


@pytest.mark.line
@pytest.mark.line
def test_modules_are_run_one_by_one_when_that_is_asked_for(package: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(package / "self_test", reference / "self_test")
    shutil.copy(package.parent / "reference" / "logprobs.npy", reference)
    row = {"values": 4, "delta_relative": 0.1, "step": 0.1, "below_step": 1.0, "snr": 0.5}
    names = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")
    left = {"modules": [{"name": n, **row} for n in names], "not_found": [], "reason": None}
    found = _validate(
        package,
        tmp_path / "out",
        survival=left,
        thorough=True,
        device={"name": "generic-x86-64", "here": False, "threads": 1, "arch": "x86_64"},
        reference=str(reference),
        checkpoint=str(package.parent / "checkpoint"),
    )["survival"]
    assert (found["items"], found["not_run"]) == (6, None)
    assert {module["name"] for module in found["modules"]} == set(names)
    one, other = (module["kl_mean"]["value"] for module in found["modules"])
    assert one > other > 0
    assert all(module["retention"]["value"] > 0.9 for module in found["modules"])


def test_a_device_that_is_not_here_has_no_latency(package: Path, tmp_path: Path) -> None:
    device = {"name": "generic-x86-64", "here": False, "threads": 1, "arch": "aarch64"}
    report = _validate(package, tmp_path / "out", device=device)
    assert report["latency"]["candidate"] is report["latency"]["reference"] is None
    assert report["latency"]["reason"] == "this host is not a generic-x86-64"
    assert report["evidence"]["on_device"] is False
    assert report["environment"]["fingerprint"] in report["fidelity"]["measured_on"]
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["ttft_ms"] == "not measured"
    assert report["verdict"] == "pass"


def test_a_budget_that_must_be_measured_on_the_device_is_inconclusive_elsewhere(
    package: Path, tmp_path: Path
) -> None:
    copy = copy_of(package, tmp_path / "p")
    _change_limits(copy, require_on_device=True)
    device = {"name": "generic-x86-64", "here": False, "threads": 1, "arch": "aarch64"}
    assert _validate(copy, tmp_path / "a", device=device)["verdict"] == "inconclusive"
    # On the device a package alone has no torch to compare with; that is no gap.
    assert _validate(copy, tmp_path / "b")["verdict"] == "pass"


def test_another_models_graph_fails_and_the_report_says_what_was_lost(
    package: Path, tmp_path: Path
) -> None:
    copy = copy_of(package, tmp_path / "p")
    _shuffle_weights(copy / VARIANT / "model.onnx.data")
    sign(copy)
    report = _validate(copy, tmp_path / "out")
    assert report["verdict"] == "fail"
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["retention"] == verdicts["kl_mean"] == "fail"
    assert verdicts["tokenizer_parity"] == "pass"
    assert report["examples"]


def test_another_tokenizer_fails(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    template = copy / VARIANT / "chat_template.jinja"
    changed = template.read_text().replace("<|assistant|>{%", "<|assistant|>\n{%")
    assert changed != template.read_text()
    template.write_text(changed)
    sign(copy)
    report = _validate(copy, tmp_path / "out")
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["tokenizer_parity"] == "fail"
    assert report["tokenizer"]["differences"][0]["kind"] == "template"


def test_outputs_that_are_not_finite_fail(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    data = copy / VARIANT / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)
    sign(copy)
    report = _validate(copy, tmp_path / "out")
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["finite_outputs"] == "fail"
    assert not (tmp_path / "out" / "answers.json").exists()
    assert verdicts["kl_mean"] == "not measured"
    assert report["fidelity"]["kl_mean"] is None
    assert report["verdict"] == "fail"


def test_tampering_is_refused(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    array = np.load(copy / "self_test" / "base_kl.npy")
    np.save(copy / "self_test" / "base_kl.npy", array * 2)
    with pytest.raises(InputRefusedError, match=r"base_kl\.npy"):
        _validate(copy, tmp_path / "out")


def test_parts_that_do_not_belong_together_are_refused(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    facts = json.loads((copy / "self_test" / "self_test.json").read_text())
    (copy / "self_test" / "self_test.json").write_text(
        dump_json({**facts, "vocabulary_size": 2048})
    )
    sign(copy)
    with pytest.raises(InputRefusedError, match=f"a vocabulary of {VOCABULARY} tokens"):
        _validate(copy, tmp_path / "out")


def test_items_longer_than_the_context_are_refused(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    config = copy / VARIANT / "genai_config.json"
    config.write_text(config.read_text().replace('"context_length": 256', '"context_length": 9'))
    sign(copy)
    with pytest.raises(InputRefusedError, match="the model takes 9"):
        _validate(copy, tmp_path / "out")


def test_limits_that_are_none_are_refused(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    (copy / "self_test" / "limits.json").write_text("{}")
    sign(copy)
    with pytest.raises(InputRefusedError, match="no tolerances and budgets"):
        _validate(copy, tmp_path / "out")


def test_validate_package_needs_no_torch_and_writes_nothing(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    blocked = ("torch", "transformers", "peft", "olive", "onnx", "safetensors", "scipy")
    code = (
        "import sys, json\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from pathlib import Path\n"
        "from edgetune.validate import rounds\n"
        "rounds.BLOCK_S, rounds.ROUNDS = 0.005, 3\n"
        "from edgetune.validate.package import validate_package\n"
        f"print(json.dumps(validate_package(Path({str(copy)!r}))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "pass"
    assert exit_code_of(report) == 0
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before


def test_the_device_is_the_one_that_is_here(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune.host import probe_host
    from edgetune.validate import package as module

    manifest, host = read_manifest(package), probe_host()
    assert choose_device(manifest, host) in ("generic-x86-64", "this-machine")
    monkeypatch.setattr(module, "_is_here", lambda name, host: name == "this-machine")
    assert choose_device(manifest, host) == "this-machine"
    monkeypatch.setattr(module, "_is_here", lambda name, host: False)
    assert choose_device(manifest, host) == "generic-x86-64"


def test_a_device_that_the_package_was_not_built_for_is_refused(
    package: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no device called 'pi'"):
        validate_package(package, "pi")
    with pytest.raises(InputRefusedError, match="not a package"):
        validate_package(tmp_path)


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 5)])
def test_a_verdict_has_an_exit_code(verdict: str, code: int) -> None:
    assert exit_code_of({"verdict": verdict}) == code


def _change_limits(package: Path, **changes: Any) -> None:
    place = package / "self_test" / "limits.json"
    place.write_text(dump_json({**json.loads(place.read_text()), **changes}))
    sign(package)


def _shuffle_weights(data: Path) -> None:
    """The head's rows moved by a hundred tokens: numbers of the same kind, another model."""
    content = np.frombuffer(data.read_bytes(), dtype=np.uint8).copy()
    # The head comes last: 64 bytes of weights a token, then 2 float32 scales a token.
    head = slice(-VOCABULARY * (64 + 8), -VOCABULARY * 8)
    content[head] = np.roll(content[head], 100 * 64)
    data.write_bytes(content.tobytes())
