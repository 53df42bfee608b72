"""`validate --on` up to the run and after it; tests/integration/test_on_device has the run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgetune.__main__ import run
from edgetune.checksums import write_checksums
from edgetune.files import dump_json
from edgetune.package.self_test_app import make_self_test_app
from edgetune.remote import validate
from tests.report.sample import make

pytestmark = pytest.mark.line

URL = "ssh://pi@device.example"
VARIANT = "cpu-w8a16-rtn"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The outline of a package; nothing in it can be opened."""
    place = tmp_path / "demo"
    for name in ("devices", "self_test", VARIANT):
        (place / name).mkdir(parents=True)
    (place / VARIANT / "genai_config.json").write_text("{}")
    variants = {VARIANT: {"variant_directory": VARIANT, "ep": "CPUExecutionProvider"}}
    manifest = {
        "schema_version": "1.0",
        "package_name": "demo",
        "components": {"model": {"variants": variants}},
    }
    (place / "manifest.json").write_text(dump_json(manifest))
    (place / "edgetune.lock").write_text("{}")
    (place / "self_test" / "run.pyz").write_bytes(make_self_test_app())
    _device(place, "board", "riscv64")
    return place


def _device(package: Path, name: str, arch: str) -> None:
    machine = {"arch": arch, "os": "linux", "cpu_model": "x", "instruction_sets": []}
    entry = {"variant": VARIANT, "session": None, "machine": {**machine, "generic": True}}
    (package / "devices" / f"{name}.json").write_text(json.dumps(entry))
    write_checksums(package)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Sequence[str]]]:
    """Makes the run there end as told, with this report; returns the commands that were run."""

    def prepare(
        status: int, said: str = "", report: dict[str, Any] | None = None
    ) -> list[Sequence[str]]:
        commands: list[Sequence[str]] = []

        def run_there(address: Any, command: Sequence[str], hear: Any) -> tuple[int, str]:
            commands.append(command)
            if report is not None:
                place = Path(command[command.index("-o") + 1])
                place.write_text(json.dumps(report))
            return status, said

        monkeypatch.setattr(validate, "run", run_there)
        return commands

    return prepare


def _on(package: Path, *more: str) -> int:
    return run(["validate", str(package), "--on", URL, "--python", sys.executable, *more])


def _report(package: Path, **changes: Any) -> dict[str, Any]:
    return make(package_digest=write_checksums(package), **changes)


def test_the_report_that_comes_back_is_the_far_one(
    far: Path, package: Path, tmp_path: Path, ran: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _report(package)
    commands = ran(0, report=made)
    out = tmp_path / "report.json"
    assert _on(package, "-d", "this-machine", "-o", str(out)) == 0
    assert json.loads(out.read_text()) == made
    told = capsys.readouterr()
    assert "verdict  pass" in told.out
    assert f"host     {URL}: Linux " in told.err
    assert "copy     6 of 6 files" in told.err
    root = far / "home/.cache/edgetune/on-device/demo"
    program = str(root / "package/self_test/run.pyz")
    report = str(root / "report.json")
    assert commands == [[sys.executable, "-B", program, "-o", report, "-d", "this-machine"]]


def test_a_host_that_is_not_the_device_is_told(
    far: Path, package: Path, ran: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(0, report=_report(package, evidence__on_device=False))
    assert _on(package, "-d", "this-machine") == 0
    assert f"warning: {URL} is not a this-machine: no time was taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "said", "code", "words"),
    [
        (
            4,
            "x\nerror: /far/demo: changed\nhint: copy it\n",
            4,
            "/far/demo: changed\nhint: copy it",
        ),
        (3, "error: too old\n", 3, "device.example: too old\n"),
        (255, "item 1\nclient_loop: send disconnect", 3, "the link broke while the self-test ran"),
        (137, "Killed\n", 3, "failed there: Killed"),
        (1, "", 3, "report did not come back"),
    ],
)
def test_what_goes_wrong_there_has_its_sentence(
    far: Path,
    package: Path,
    ran: Any,
    capsys: pytest.CaptureFixture[str],
    status: int,
    said: str,
    code: int,
    words: str,
) -> None:
    ran(status, said)
    assert _on(package, "-d", "this-machine") == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "changes"), [(1, {}), (0, {"package_digest": "0" * 64})], ids=["verdict", "package"]
)
def test_a_report_of_something_else_is_refused(
    far: Path,
    package: Path,
    ran: Any,
    capsys: pytest.CaptureFixture[str],
    status: int,
    changes: dict[str, str],
) -> None:
    ran(status, report={**_report(package), **changes})
    assert _on(package, "-d", "this-machine") == 4
    assert "its report is not of this package and this run" in capsys.readouterr().err


def test_a_machine_of_another_architecture_is_refused(
    far: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["-d", "board"]):
        assert _on(package, *more) == 3
        told = capsys.readouterr().err
        assert "machine; board is riscv64\nhint: name the device's own address" in told
    assert not (far / "sent").exists()


def test_a_host_without_libraries_is_refused_before_anything_is_sent(
    far: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    assert run(["validate", str(package), "--on", URL, "--python", str(bare)]) == 3
    told = capsys.readouterr().err
    assert "bare-python there has no numpy, onnxruntime, onnxruntime-genai\nhint: there: " in told
    assert not (far / "sent").exists()


def test_a_profile_says_where_its_device_is(
    far: Path, package: Path, tmp_path: Path, ran: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = Path("devices/raspberry-pi-5.yaml").read_text(encoding="utf-8")
    profile = tmp_path / "board.yaml"
    profile.write_text(shipped)
    assert run(["validate", str(package), "--on", str(profile)]) == 2
    assert "does not say where the device is" in capsys.readouterr().err
    reach = f"reach: {{by: ssh, address: '{URL}', python: '{sys.executable}'}}\n"
    profile.write_text(shipped + reach)
    from edgetune.host import probe_host

    _device(package, "board", probe_host().arch)
    commands = ran(0, report=_report(package))
    assert run(["validate", str(package), "--on", str(profile)]) == 0
    assert commands[0][-2:] == ["-d", "board"]
    profile.write_text(shipped + f"reach: {{address: '{URL}'}}\n")
    assert run(["validate", str(package), "--on", str(profile)]) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--emulate", "raspberry-pi-5"], "--on does not go with --emulate"),
        (["--thorough"], "--on does not go with --thorough"),
        (["--lm-eval", "{folder}"], "--on does not go with --lm-eval"),
        (["-d", "phone"], "built for no device called 'phone'"),
    ],
)
def test_options_that_do_not_go_together(
    far: Path,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: str,
) -> None:
    assert _on(package, *(text.format(folder=tmp_path / "lm") for text in more)) == 2
    assert words in capsys.readouterr().err
    assert not (far / "commands").exists()


def test_a_python_without_a_host_and_a_package_without_the_program(
    far: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(package), "--python", "x"]) == 2
    assert "--python names a Python on another host" in capsys.readouterr().err
    shutil.rmtree(package / "self_test")
    write_checksums(package)
    assert _on(package) == 2
    assert "no self_test/run.pyz, an older edgetune built it" in capsys.readouterr().err
