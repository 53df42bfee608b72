"""OpenSSH by subprocess: the user's configuration, agent and known hosts hold, nothing is asked.

Whatever goes wrong on the way is a MissingError that says what ssh said.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.errors import MissingError
from edgetune.remote import far_side
from edgetune.remote.address import Address

# A password or the question for a host's key would wait for ever; a link that is gone is noticed
# within a minute.
_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
)
# ssh's own status for a connection that failed or broke.
BROKEN = 255
# The shell's for a program that is not there, or that it may not run.
_NO_PROGRAM = (126, 127)
_ASK_S = 1800.0


class BrokenLinkError(MissingError):
    """The connection could not be made, or ended before its work."""


def ask(address: Address, python: str, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let the Python there do a job of `far_side`; returns its answer.

    Raises BrokenLinkError, or MissingError: no such Python there, or it failed.
    """
    text = Path(far_side.__file__).read_text(encoding="utf-8")
    text += f"\nmain(json.loads({json.dumps(json.dumps(job))}))\n"
    command = [_program("ssh"), *_OPTIONS, *_port("-p", address), address.destination]
    try:
        done = subprocess.run(
            [*command, f"{shlex.quote(python)} -B -"],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_S,
            check=False,
        )
    except subprocess.TimeoutExpired as why:
        msg = f"{address}: no answer in {_ASK_S:.0f} s"
        raise BrokenLinkError(msg, "look what the machine is busy with") from why
    for line in done.stdout.splitlines():
        if line.startswith(far_side.MARK):
            answer: Mapping[str, Any] = json.loads(line.removeprefix(far_side.MARK))
            if "error" not in answer:
                return answer
            msg = f"{address}: {answer['error']}"
            raise MissingError(msg, "free some space there, or give its user the rights")
    raise failure(address, python, done.returncode, done.stderr)


def failure(address: Address, python: str, status: int, said: str) -> MissingError:
    """The error of an ssh that ended with `status` and said this on its standard error."""
    words = last_line(said) or f"status {status}"
    by_hand = " ".join(["ssh", *_port("-p", address), address.destination])
    if status == BROKEN:
        hint = f"it must answer without a question: {by_hand} true"
        return BrokenLinkError(f"{address}: cannot be reached: {words}", hint)
    if status in _NO_PROGRAM:
        msg = f"{address}: there is no {python} that runs: {words}"
        return MissingError(msg, "name the Python there with --python PATH")
    msg = f"{address}: {python} failed there: {words}"
    return MissingError(msg, f"try it by hand: {by_hand} {shlex.quote(python)} --version")


def copy(address: Address, lines: Sequence[str], folder: Path) -> str | None:
    """Run lines of sftp's batch language, local names in `folder`; null, or what it said when
    one failed."""
    command = [_program("sftp"), *_OPTIONS, *_port("-P", address), "-b", "-", address.destination]
    done = subprocess.run(
        command,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder,
        check=False,
    )
    return None if done.returncode == 0 else last_line(done.stderr) or f"status {done.returncode}"


def run(address: Address, command: Sequence[str], hear: Callable[[str], None]) -> tuple[int, str]:
    """Run a command there; each line on its standard error is told to `hear`. Returns (exit
    status, all that it said there)."""
    with subprocess.Popen(
        [
            *(_program("ssh"), *_OPTIONS, *_port("-p", address), address.destination),
            shlex.join(command),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stderr is not None
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                hear(line.rstrip())
        except BaseException:
            process.kill()
            raise
        return process.wait(), "".join(said)


def quoted(name: str) -> str:
    """A name as sftp's batch language takes it: patterns of files are none inside quotes. No name
    has a backslash: a list of checksums cannot hold one."""
    escaped = name.replace('"', '\\"')
    return f'"{escaped}"'


def last_line(said: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _port(option: str, address: Address) -> tuple[str, ...]:
    return (option, str(address.port)) if address.port else ()


def _program(name: str) -> str:
    if found := shutil.which(name):
        return found
    msg = f"{name} is not installed here"
    raise MissingError(msg, "install OpenSSH's client: apt-get install openssh-client")
