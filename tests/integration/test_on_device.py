"""The demo's package checks itself where nothing but its runtime is, and on a host behind ssh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetune.checksums import verify_checksums, write_checksums
from edgetune.files import digests_of_folder, list_files
from edgetune.runtime.oldest import OLDEST
from tests.integration.conftest import edgetune
from tests.integration.far_host import USER, FarHost, Proxy, far_host
from tests.integration.test_install import copy_distribution, requirements_of
from tests.integration.test_resume import small_disk

pytestmark = pytest.mark.slow

RUNTIME = ("numpy", "onnxruntime", "onnxruntime-genai")
ABSENT = ("torch", "transformers", "pydantic", "click", "rich", "ruamel", "psutil", "archspec")
EXACT = ("retention", "kl_mean", "exact_match_drop", "tokenizer_parity", "finite_outputs")


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter."""
    folder = Path(tempfile.mkdtemp(prefix="edgetune-device-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def bare(open_folder: Path) -> Path:
    """A Python with the runtime's libraries alone."""
    folder = open_folder / "venv"
    venv.create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in {*RUNTIME, *requirements_of("onnxruntime"), *requirements_of("onnxruntime-genai")}:
        copy_distribution(name, site)
    python = folder / "bin" / "python"
    for name in ABSENT:
        done = subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False)
        assert done.returncode != 0, f"{name} is in the bare environment"
    return python


@pytest.fixture(scope="module")
def package(demo: Path, open_folder: Path) -> Path:
    """A copy of the demo's package that other users may read."""
    return Path(shutil.copytree(demo / "demo", open_folder / "demo"))


@pytest.fixture(scope="module")
def host(open_folder: Path) -> Iterator[FarHost]:
    with far_host(open_folder) as host:
        yield host


def _report_of_build(package: Path) -> dict[str, Any]:
    text = (package / "reports" / "generic-x86-64.json").read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(text)
    return report


def _run_pyz(
    python: Path, package: Path, folder: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, package / "self_test" / "run.pyz", *more],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_checks_itself_where_nothing_else_is(
    bare: Path, package: Path, tmp_path: Path
) -> None:
    before = digests_of_folder(package)
    done = _run_pyz(bare, package, tmp_path)
    assert done.returncode == 0, done.stderr
    assert digests_of_folder(package) == before
    report = json.loads((tmp_path / "demo@generic-x86-64.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "pass"
    assert report["fidelity"]["kl_kind"] == "top-k lower bound"
    assert report["latency"]["candidate"]["answer_ms"] > 0
    assert report["latency"]["reference"] is None
    assert report["evidence"]["on_device"] is True
    assert report["environment"]["versions"]["torch"] is None
    # The same command of edgetune says the same, to the last digit; and its gate reads it.
    mine = edgetune("validate", package, "-o", tmp_path / "mine.json")
    assert mine.returncode == 0, mine.stderr
    other = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))
    values = [{c["name"]: c for c in own["checks"]} for own in (report, other)]
    assert [values[0][name] for name in EXACT] == [values[1][name] for name in EXACT]
    assert report["per_item"] == other["per_item"]
    fingerprints = [own["environment"]["fingerprint"] for own in (report, other)]
    assert fingerprints[0] == fingerprints[1]
    # What the build measured over the whole vocabulary is no less than this lower bound.
    whole = _report_of_build(package)["fidelity"]["kl_mean"]["value"]
    assert report["fidelity"]["kl_mean"]["value"] <= whole + 1e-6
    gated = edgetune("gate", tmp_path / "demo@generic-x86-64.json", package)
    assert gated.returncode == 0, gated.stderr


def test_a_package_that_fails_or_was_changed_has_its_code(
    bare: Path, package: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "demo"))
    with (copy / "cpu-w8a16-rtn" / "model.onnx.data").open("r+b") as file:
        file.seek(1000)
        file.write(b"edgetune")
    done = _run_pyz(bare, copy, tmp_path)
    assert done.returncode == 4
    assert "model.onnx.data (changed)" in done.stderr
    assert not list(tmp_path.glob("*.json"))


def test_on_a_host_without_the_runtime(host: FarHost, package: Path, open_folder: Path) -> None:
    venv.create(open_folder / "empty")
    python = open_folder / "empty" / "bin" / "python"
    done = _validate_on(host, package, "--python", python)
    assert done.returncode == 3
    assert f"{python} there has no numpy, onnxruntime, onnxruntime-genai" in done.stderr
    assert "-m pip install 'numpy>=" in done.stderr
    done = _validate_on(host, package, "--python", "/no/such/python")
    assert done.returncode == 3
    assert "there is no /no/such/python that runs" in done.stderr


def test_a_host_that_cannot_be_reached(host: FarHost, package: Path) -> None:
    for address, words in (
        ("ssh://127.0.0.1:1", "cannot be reached: ssh: connect to host 127.0.0.1 port 1"),
        (f"ssh://nobody@127.0.0.1:{host.port}", "Permission denied"),
        # Not in the known hosts: nobody is asked, and nothing is written.
        (f"ssh://{USER}@localhost:{host.port}", "Host key verification failed"),
    ):
        done = edgetune("validate", package, "--on", address, environment=host.environment)
        assert done.returncode == 3, done.stderr
        assert words in done.stderr
        assert "hint: it must answer without a question: ssh " in done.stderr


def test_a_host_of_another_architecture(host: FarHost, package: Path, bare: Path) -> None:
    copy = package.parent / "arm" / "demo"
    shutil.copytree(package, copy)
    entry = copy / "devices" / "generic-x86-64.json"
    entry.write_text(entry.read_text().replace('"x86_64"', '"aarch64"'))
    write_checksums(copy)
    done = _validate_on(host, copy, "--python", bare)
    assert done.returncode == 3
    assert "an x86_64 machine; generic-x86-64 is aarch64" in done.stderr


def test_no_space_there(host: FarHost, package: Path, bare: Path) -> None:
    shutil.rmtree(host.home / ".cache", ignore_errors=True)
    with small_disk(host.home / ".cache", 3) as small:
        shutil.chown(small, USER, USER)
        done = _validate_on(host, package, "--python", bare)
    (host.home / ".cache").rmdir()
    assert done.returncode == 3
    assert "no space there: " in done.stderr
    assert "MB are free" in done.stderr


def test_a_link_that_breaks_is_gone_on_with_and_the_report_comes_back(
    host: FarHost, package: Path, bare: Path, tmp_path: Path
) -> None:
    total = sum((package / n).stat().st_size for n in list_files(package) if "reports" not in n)
    proxy = Proxy(host.port, limit=total * 3 // 4)
    out = tmp_path / "far.json"
    more = ("--python", bare, "-o", out)
    broken = _validate_on(host, package, *more, port=proxy.port)
    assert broken.returncode == 3, broken.stderr
    assert "the transfer broke" in broken.stderr
    assert "hint: run the same command again: it goes on from there" in broken.stderr
    assert not out.exists()

    proxy.limit, proxy.sent = None, 0
    done = _validate_on(host, package, *more, port=proxy.port)
    assert done.returncode == 0, done.stderr
    assert "(an earlier transfer is continued)" in done.stderr
    # A quarter of it, ssh's own bytes, and what was on its way when the link broke: sftp sends up
    # to 64 pieces of 32 KiB ahead.
    assert proxy.sent < total * 0.7
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["verdict"] == "pass"
    assert report["package_digest"] == verify_checksums(package)
    assert report["evidence"]["on_device"] is True
    assert report["latency"]["candidate"]["answer_ms"] > 0
    assert report["environment"]["versions"]["torch"] is None

    proxy.sent = 0
    far = host.home / ".cache/edgetune/on-device/demo/package"
    assert digests_of_folder(far) == digests_of_folder(package, without=("reports",))
    (far / "cpu-w8a16-rtn" / "tokenizer.json").write_bytes(b"{}")
    again = _validate_on(host, package, *more, "-d", "this-machine", port=proxy.port)
    assert again.returncode == 0, again.stderr
    assert "copy     1 of " in again.stderr
    assert proxy.sent < 200_000
    proxy.close()
    gated = edgetune("gate", out)
    assert gated.returncode == 0, gated.stderr


@pytest.fixture(scope="module")
def oldest(open_folder: Path) -> Path:
    """A Python with the oldest libraries that a package needs, from wheels fetched before."""
    wheels = Path(os.environ.get("EDGETUNE_WHEELS", "/nowhere"))
    wanted = [f"{name}=={OLDEST[name]}" for name in RUNTIME]
    venv.create(open_folder / "oldest", with_pip=True)
    python = open_folder / "oldest" / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "--no-index", "--find-links", wheels, *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(
            f"{' '.join(wanted)} are not here: pip download -d FOLDER {' '.join(wanted)}, "
            "then EDGETUNE_WHEELS=FOLDER"
        )
    return python


def test_the_oldest_libraries_give_the_same_verdict(
    oldest: Path, bare: Path, package: Path, tmp_path: Path
) -> None:
    done = _run_pyz(oldest, package, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo@generic-x86-64.json").read_text(encoding="utf-8"))
    versions = report["environment"]["versions"]
    assert {name: versions[name] for name in RUNTIME} == {name: OLDEST[name] for name in RUNTIME}
    built = _report_of_build(package)
    assert report["verdict"] == "pass"
    assert report["task_metrics"]["exact_match"]["n"] == built["task_metrics"]["exact_match"]["n"]
    assert report["tokenizer"]["mismatches"] == 0


def _validate_on(
    host: FarHost, package: Path, *more: str | Path, port: int | None = None
) -> subprocess.CompletedProcess[str]:
    address = host.address(port)
    return edgetune("validate", package, "--on", address, *more, environment=host.environment)
