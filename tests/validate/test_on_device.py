"""What `run.pyz` does, on the tiny package: the same figures, its own codes and sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.files import digests_of_folder
from edgetune.report.contradictions import contradictions, edited_verdicts
from edgetune.report.schema import load_report
from edgetune.runtime import oldest
from edgetune.validate import on_device, rounds
from edgetune.validate.package import validate_package
from tests.tiny_package import VARIANT, copy_of, sign


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rounds, "BLOCK_S", 0.005)
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)
    monkeypatch.chdir(tmp_path)


def _main(package: Path, *arguments: str) -> int:
    return on_device.main(arguments, package / "self_test" / "run.pyz")


@pytest.mark.line
def test_it_says_what_validate_says(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests_of_folder(package)
    assert _main(package, "-d", "this-machine", "--json", "--threads", "1") == 0
    told = capsys.readouterr()
    report = load_report(tmp_path / "tiny@this-machine.json")
    assert json.loads(told.out) == json.loads((tmp_path / "tiny@this-machine.json").read_text())
    assert "report   tiny@this-machine.json" in told.err
    assert not contradictions(report)
    assert not edited_verdicts(report)
    other = validate_package(package, "this-machine")
    value = report.model_dump(mode="json")
    assert value.keys() == other.keys()
    for key in ("fidelity", "task_metrics", "tokenizer", "per_item", "examples", "inputs", "size"):
        assert value[key] == other[key]
    assert value["evidence"] == other["evidence"]
    assert value["evidence"]["on_device"] is True
    assert value["environment"]["fingerprint"] == other["environment"]["fingerprint"]
    exact = ("retention", "kl_mean", "exact_match_drop", "tokenizer_parity", "finite_outputs")
    checks = [{c["name"]: c for c in own["checks"]} for own in (value, other)]
    assert [checks[0][name] for name in exact] == [checks[1][name] for name in exact]
    assert digests_of_folder(package) == before


def test_the_checks_and_the_verdict_are_printed(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copy_of(package, tmp_path / "package")
    limits = json.loads((damaged / "self_test" / "limits.json").read_text())
    limits["tolerances"]["kl_mean"] = 0.0
    (damaged / "self_test" / "limits.json").write_text(json.dumps(limits))
    sign(damaged)
    out = tmp_path / "r.json"
    assert _main(damaged, "-o", str(out), "-d", "generic-x86-64", "--variant", VARIANT) == 1
    told = capsys.readouterr().out
    assert "\nfail          kl_mean " in told
    assert "\nverdict  fail: kl_mean\nlost     KL from the trained model is " in told
    # The package does not say what its device is.
    assert "\nnot measured  ttft_ms                this host is not a generic-x86-64\n" in told
    assert load_report(out).evidence["on_device"] is False


def _machine(**changes: Any) -> dict[str, Any]:
    from edgetune.host import probe_host

    host = probe_host()
    own = {"arch": host.arch, "os": host.os, "cpu_model": "x", "instruction_sets": []}
    return {**own, "generic": True, **changes}


def test_the_package_says_which_device_this_is(package: Path, tmp_path: Path) -> None:
    from edgetune.host import probe_host
    from edgetune.runtime.manifest import read_manifest
    from edgetune.validate.here import own_device, told_here
    from edgetune.validate.package import choose_device

    copy = copy_of(package, tmp_path / "package")
    for name, machine in {
        "a": _machine(arch="riscv64"),
        "b": _machine(generic=False, cpu_model="no such processor"),
        "c": _machine(instruction_sets=["no-such-set"]),
        "d": _machine(),
    }.items():
        entry = {"variant": VARIANT, "session": None, "machine": machine}
        (copy / "devices" / f"{name}.json").write_text(json.dumps(entry))
    sign(copy)
    manifest, host = read_manifest(copy), probe_host()
    told = [told_here(manifest, name, host) for name in ("a", "b", "c", "d", "generic-x86-64")]
    assert told == [False, False, False, True, None]
    assert own_device(manifest, host) == choose_device(manifest, host) == "d"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-o", "{package}/r.json"], 2, "inside the package"),
        (["--threads", "0"], 2, "--threads 0: a number from 1 to 1024"),
        (["--variant", "gpu"], 2, "has no variant called 'gpu'"),
        (["-d", "phone"], 2, "built for no device called 'phone'"),
        (["{package}/self_test"], 4, "not a package of edgetune"),
        (["-o", "{folder}"], 3, "the report cannot be written there"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str],
    code: int,
    words: str,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [text.format(package=package, folder=tmp_path) for text in arguments]
    assert _main(package, *texts) == code
    told = capsys.readouterr()
    assert words in told.err
    assert "\nhint: " in told.err
    assert told.out == ""
    assert not list(tmp_path.iterdir())


def test_a_changed_package_is_refused_before_anything_else(
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = copy_of(package, tmp_path / "package")
    with (copy / VARIANT / "model.onnx.data").open("r+b") as file:
        file.write(b"x")
    monkeypatch.setattr(on_device, "find_spec", lambda name: None)
    assert _main(copy, "-o", str(tmp_path / "r.json")) == 4
    assert f"{VARIANT}/model.onnx.data (changed)" in capsys.readouterr().err
    assert _main(package) == 3
    told = capsys.readouterr().err
    assert "numpy and onnxruntime and onnxruntime-genai not installed" in told
    assert "-m pip install 'numpy>=" in told


def test_libraries_that_are_too_old_are_told(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(oldest.OLDEST, "onnxruntime", "999.1")
    assert _main(package) == 3
    assert "(999.1 is the oldest that will do)" in capsys.readouterr().err


def test_what_nobody_thought_of_is_no_failed_gate(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_device, "probe_host", lambda: 1 / 0)
    assert _main(package) == 6
    assert "error: the self-test itself failed: ZeroDivisionError" in capsys.readouterr().err


def test_versions_are_compared_by_their_numbers() -> None:
    def old(**versions: str | None) -> list[str]:
        named = {name.replace("_", "-"): version for name, version in versions.items()}
        return oldest.too_old(named, oldest.OLDEST)

    assert old(onnxruntime="1.4.0")
    assert old(python="3.9.18")
    assert not oldest.too_old({**oldest.OLDEST, "numpy": None}, oldest.OLDEST)
    assert not old(python="3.14.0rc1", onnxruntime="10.0.dev1")


def test_an_8_bit_cache_asks_for_a_newer_onnxruntime() -> None:
    plain, small = (oldest.oldest_for({"recipe": {"kv_cache": k}}) for k in ("float32", "int8"))
    assert plain == oldest.OLDEST == oldest.oldest_for({})
    assert oldest.too_old({"onnxruntime": plain["onnxruntime"]}, small)
    assert small["onnxruntime-genai"] == plain["onnxruntime-genai"]
