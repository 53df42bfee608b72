"""kill -9, full disks, two builds at once: no finished step is lost, no byte differs."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from edgetune.files import digests_of_folder
from tests.integration.conftest import ROOT, build_of, edgetune

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parent / "few" / "demo.yaml"
FLAGS = ["build", str(RECIPE), "-d", "generic-x86-64", "--until", "package", "--json"]
STRACE = shutil.which("strace")
needs_strace = pytest.mark.skipif(STRACE is None, reason="fault injection needs strace")


def package_digests(out: Path) -> dict[str, str]:
    return digests_of_folder(out / "demo", ["reports"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an undisturbed build; nobody may change it."""
    out = tmp_path_factory.mktemp("few") / "out"
    done = edgetune(*FLAGS, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def undisturbed(demo: Path) -> dict[str, str]:
    return package_digests(demo)


def test_another_folder_zone_locale_umask_and_hash_seed_give_the_same_bytes(
    undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "a folder with ünïcode" / "o"
    environment = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "77", "HOME": str(tmp_path)}
    old = os.umask(0o077)
    try:
        done = edgetune(*FLAGS, "-o", out, cwd=tmp_path, environment=environment)
    finally:
        os.umask(old)
    assert done.returncode == 0, done.stderr
    assert package_digests(out) == undisturbed


@pytest.mark.parametrize("step", ["merge", "reference", "optimize", "package"])
def test_kill_nine_during_a_step_loses_no_finished_one(
    undisturbed: dict[str, str], demo: Path, tmp_path: Path, step: str
) -> None:
    out = tmp_path / "out"
    if step != "merge":
        half_store(demo, out, step)
    build = subprocess.Popen(
        [sys.executable, "-m", "edgetune", *FLAGS, "-o", str(out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 300
    # Not deeper: folders that a step makes and removes may vanish under a search.
    while not [*out.glob(f".tmp-{step}-*"), *out.glob(f"steps/.tmp-{step}-*")]:
        assert build.poll() is None, "the build ended before the step began"
        assert time.monotonic() < end
        time.sleep(0.005)
    build.send_signal(signal.SIGKILL)
    build.wait()
    finished = {p.parent.name.split("-")[0] for p in out.glob("steps/*/step.json")}
    assert step not in finished
    done = edgetune(*FLAGS, "-o", out)
    assert done.returncode == 0, done.stderr
    cached = {s["name"] for s in build_of(done)["steps"] if s["cached"]}
    assert cached == finished
    assert package_digests(out) == undisturbed
    assert not list(out.glob("**/.tmp-*"))


def inject(out: Path, fault: str, demo: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Build with a fault at a system call, from a store whose merge and reference are done."""
    assert STRACE is not None
    return subprocess.run(
        [
            *(STRACE, "-f", "-qq", "-o", "/dev/null", "-e", f"inject={fault}"),
            *(sys.executable, "-m", "edgetune", *FLAGS, "-o", str(out)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@needs_strace
@pytest.mark.parametrize(
    "fault",
    [
        "fsync:signal=SIGKILL:when=1",
        # strace counts by thread; the threads that write a graph and a package make 22 and more.
        "fsync:signal=SIGKILL:when=18",
        "rename:signal=SIGKILL:when=4",
    ],
)
def test_a_kill_at_an_fsync_or_rename_leaves_a_store_that_goes_on(
    undisturbed: dict[str, str], demo: Path, tmp_path: Path, fault: str
) -> None:
    out = tmp_path / "out"
    half_store(demo, out)
    killed = inject(out, fault, demo, tmp_path)
    assert killed.returncode != 0, "the fault did not happen"
    done = edgetune(*FLAGS, "-o", out)
    assert done.returncode == 0, done.stderr
    assert package_digests(out) == undisturbed


@needs_strace
@pytest.mark.parametrize("when", ["1+", "12+"])
def test_a_full_disk_is_told_and_survived(
    undisturbed: dict[str, str], demo: Path, tmp_path: Path, when: str
) -> None:
    out = tmp_path / "out"
    half_store(demo, out)
    full = inject(out, f"fsync,fdatasync:error=ENOSPC:when={when}", demo, tmp_path)
    assert full.returncode == 3, full.stderr
    assert "disk is full" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list(out.glob("**/.tmp-*"))
    done = edgetune(*FLAGS, "-o", out)
    assert done.returncode == 0, done.stderr
    assert package_digests(out) == undisturbed


def half_store(demo: Path, out: Path, missing: str = "optimize") -> None:
    """A store in which the steps before `missing` are done, and it and those after it are not."""
    shutil.copytree(demo / "steps", out / "steps")
    order = ("merge", "reference", "optimize", "package", "validate")
    for folder in out.glob("steps/*-*"):
        if folder.name.split("-")[0] in order[order.index(missing) :]:
            shutil.rmtree(folder)


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, so small that a build can fill it; skips where it cannot be had."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs more rights than this user has")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_real_full_disk(undisturbed: dict[str, str], demo: Path, tmp_path: Path) -> None:
    """A file system of 40 MB: the plan sees it beforehand; nothing is left half-written."""
    with small_disk(tmp_path / "small", 40) as small:
        done = edgetune(*FLAGS, "-o", small / "out")
        assert done.returncode == 3
        assert "GB of disk (predicted)" in done.stderr
        assert not (small / "out").exists()


def test_a_disk_that_fills_up_during_a_step(
    undisturbed: dict[str, str], demo: Path, tmp_path: Path
) -> None:
    """Real writes that fail: a small file system is filled while the graph is being made."""
    with small_disk(tmp_path / "small", 150) as small:
        out, filler = small / "out", small / "filler"
        half_store(demo, out)
        build = subprocess.Popen(
            [sys.executable, "-m", "edgetune", *FLAGS, "-o", str(out)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not list(out.glob("steps/.tmp-optimize-*")):
            assert build.poll() is None
            time.sleep(0.01)
        # What the step writes meanwhile leaves less than was free: either way the disk is full.
        with suppress(OSError):
            filler.write_bytes(b"x" * shutil.disk_usage(small).free)
        _, told = build.communicate(timeout=300)
        assert build.returncode == 3, told
        assert "disk is full" in told
        assert not list(out.glob("**/.tmp-*"))
        filler.unlink()
        done = edgetune(*FLAGS, "-o", out)
        assert done.returncode == 0, done.stderr
        assert {"merge", "reference"} <= {s["name"] for s in build_of(done)["steps"] if s["cached"]}
        assert package_digests(out) == undisturbed


def test_two_builds_at_once_in_one_folder(undisturbed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgetune", *FLAGS, "-o", str(out)]
    builds = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for build in builds:
        _, told = build.communicate(timeout=900)
        assert build.returncode == 0, told.decode()
    assert package_digests(out) == undisturbed


def test_a_byte_flipped_in_a_finished_step_is_noticed(
    undisturbed: dict[str, str], demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    weights = next(out.glob("steps/merge-*/model.safetensors"))
    content = bytearray(weights.read_bytes())
    before = hashlib.sha256(content).hexdigest()
    content[-7] ^= 4
    weights.write_bytes(content)
    done = edgetune(*FLAGS, "-o", out)
    assert done.returncode == 0, done.stderr
    assert not next(s for s in build_of(done)["steps"] if s["name"] == "merge")["cached"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before
    assert package_digests(out) == undisturbed


def test_ctrl_c_ends_with_130_and_keeps_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build = subprocess.Popen(
        [sys.executable, "-m", "edgetune", *FLAGS, "-o", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Under a shell's `&` or nohup SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(out.glob("steps/.tmp-reference-*")):
        assert build.poll() is None
        time.sleep(0.01)
    build.send_signal(signal.SIGINT)
    _, told = build.communicate(timeout=60)
    assert build.returncode == 130
    assert "interrupted; finished steps are kept" in told
    assert list(out.glob("steps/merge-*/step.json"))
    assert not list(out.glob("**/.tmp-*"))
