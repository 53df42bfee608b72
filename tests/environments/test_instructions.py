"""What the processor under a process says of itself, and the cpuinfo made from it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from edgetune.environments import instructions
from edgetune.environments.cpuinfo import cpuinfo_text
from edgetune.environments.instructions import instruction_sets, main_id
from edgetune.errors import MissingError
from edgetune.host import probe_host

# MIDR_EL1 of a Cortex-A76 r4p1 as QEMU 7.2 shows it.
A76 = 0x414FD0B1
FLAGS = ["fp", "asimd", "aes", "asimddp"]


def test_the_processor_shows_what_linux_says_of_it() -> None:
    found = instruction_sets()
    assert found
    # What the tables know and Linux lists must be found, and nothing that Linux does not list.
    listed = set(probe_host().instruction_sets)
    assert set(found) <= listed
    known = {*instructions._HWCAP, *instructions._HWCAP2}
    if platform.machine() == "x86_64":
        known = {flag for bits in instructions._X86_64.values() for flag in bits.values()}
    assert known & listed <= set(found)


def test_an_unknown_machine_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert instruction_sets() is None
    assert main_id() is None


def test_the_module_answers_as_a_program() -> None:
    command = [sys.executable, "-m", "edgetune.environments.instructions"]
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert said["machine"] == platform.machine()
    assert tuple(said["instruction_sets"]) == instruction_sets()


def test_cpuinfo_names_design_and_flags() -> None:
    text = cpuinfo_text({"instruction_sets": FLAGS, "main_id": A76}, cores=2)
    rows = [[part.strip() for part in line.split(":")] for line in text.splitlines() if line]
    assert [row for row in rows if row[0] == "processor"] == [
        ["processor", "0"],
        ["processor", "1"],
    ]
    fields = dict(rows)
    assert fields["CPU implementer"] == "0x41"
    assert fields["CPU architecture"] == "8"
    assert fields["CPU variant"] == "0x4"
    assert fields["CPU part"] == "0xd0b"
    assert fields["CPU revision"] == "1"
    assert fields["Features"] == "fp asimd aes asimddp"


def test_no_cpuinfo_of_a_processor_that_says_nothing() -> None:
    with pytest.raises(MissingError, match="does not say what it is"):
        cpuinfo_text({"instruction_sets": None, "main_id": A76})
