"""Each measure of a confinement: had on this kernel, and found missing when it is not had."""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.confined import seccomp
from edgetune.confined.probe import REQUIRED, Trap, open_trap

PROGRAM = """
import json, sys
from pathlib import Path
from edgetune.confined import confine, landlock, probe, seccomp
trap, out, without = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if without == "landlock":
    confine.restrict_files = lambda *_: False
if without in ("calls", "network"):
    confine.forbid_calls = lambda: False
if without == "network":
    confine._leave_namespaces = lambda: None
    landlock._NETWORK = 0
if without == "namespaces":
    confine._leave_namespaces = lambda: None
confine.confine([], out, [], 1 << 20)
if without != "limits":
    confine.limit_for_good(256 << 20, 5)
print(json.dumps(probe.probe(trap, out, 256 << 20, 1 << 20)))
"""
ALL = {
    *REQUIRED, "no writing elsewhere", "no reading elsewhere", "no other programs",
    "no other processes", "limited files", "limited time",
}  # fmt: skip


# What only Landlock gives; a kernel may be without (the reader then warns of it).
FILES = {"no writing elsewhere", "no reading elsewhere"}
HAS_LANDLOCK = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0


def held(trap: Trap, out: Path, without: str = "") -> set[str]:
    arguments = [json.dumps(trap.arguments()), str(out), without]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not list(out.iterdir())
    return {name for name, holds in json.loads(done.stdout).items() if holds}


@pytest.mark.parametrize(
    ("without", "lacking"),
    [
        ("", set()),
        # A user's own namespaces are a second lock on the network; the call filter is enough.
        ("namespaces", set()),
        ("landlock", {"no writing elsewhere", "no reading elsewhere"}),
        ("calls", {"no other programs", "no other processes"}),
        ("network", {"no network", "no other programs", "no other processes"}),
        ("limits", {"limited memory", "limited time"}),
    ],
)
def test_what_holds(without: str, lacking: set[str], tmp_path: Path) -> None:
    with open_trap() as trap:
        lacking = lacking if HAS_LANDLOCK else lacking | FILES
        assert held(trap, tmp_path, without) == ALL - lacking
        assert trap.was_sprung() == bool(lacking & {"no network", "no writing elsewhere"})


def test_a_free_process_passes_nothing_but_its_own_limits(tmp_path: Path) -> None:
    code = "import json, sys; from pathlib import Path; from edgetune.confined.probe import probe\n"
    code += "print(json.dumps(probe(json.loads(sys.argv[1]), Path(sys.argv[2]), 1 << 20, 1 << 20)))"
    with open_trap() as trap:
        command = [sys.executable, "-c", code, json.dumps(trap.arguments()), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert trap.was_sprung()
    assert not any(json.loads(done.stdout).values())


def evaluate(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the filter answers to a call, by the rules of classic BPF."""
    data = {0: number, 4: architecture, 16: argument}
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    place, held_value = 0, 0
    while True:
        kind, yes, no, value = code[place]
        place += 1
        if kind == 0x20:
            held_value = data[value]
        elif kind == 0x06:
            return int(value)
        else:
            holds = {0x15: held_value == value, 0x35: held_value >= value,
                     0x45: bool(held_value & value)}[kind]  # fmt: skip
            place += yes if holds else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_call_filter(machine: str) -> None:
    program = seccomp.make_filter(machine)
    assert program is not None
    architecture, clone, forbidden = seccomp._MACHINES[machine]

    def answer(number: int, argument: int = 0) -> int:
        return evaluate(program, architecture, number, argument)

    permission, allowed = 0x00050001, 0x7FFF0000
    assert {answer(n) for n in (*forbidden.values(), *seccomp._LATER.values())} == {permission}
    assert answer(clone, 0x00010000) == allowed
    assert answer(clone, 17) == permission
    assert answer(435) == 0x00050000 | 38
    assert {answer(n) for n in (0, 1, 3) if n != clone} == {allowed}
    assert evaluate(program, 1, 0) == 0x80000000
    if machine == "x86_64":
        assert answer(0x40000000 | 41) == permission


def test_an_unknown_machine_has_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert not seccomp.forbid_calls()


def test_no_confinement_without_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgetune.confined.confine import confine
    from edgetune.errors import MissingError

    def no_call(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("ctypes.CDLL", no_call)
    with pytest.raises(MissingError, match="that takes Linux"):
        confine([], tmp_path, [], 1)
