"""`edgetune validate PACKAGE --on ssh://…`: the package's own self-test, run on its device.

What the device lacks is copied there, `self_test/run.pyz` runs with the Python there, and its
report comes back as it is: no figure of this machine is in it. It is read through the report's
schema and judged anew here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgetune.checksums import SELF_TEST_APP
from edgetune.console import print_note, step_progress
from edgetune.errors import (
    GATE_FAILED,
    INCONCLUSIVE,
    PASS,
    EdgetuneError,
    InputRefusedError,
    MissingError,
    UsageError,
    error_from_code,
)
from edgetune.host import THIS_MACHINE
from edgetune.remote.address import Address
from edgetune.remote.ssh import BROKEN, BrokenLinkError, ask, copy, failure, last_line, quoted, run
from edgetune.remote.transfer import files_of, folder_name, send
from edgetune.report.make import write_verdicts
from edgetune.report.schema import load_report
from edgetune.runtime.manifest import Manifest, read_manifest
from edgetune.runtime.oldest import oldest_for, too_old

DEFAULT_PYTHON = "python3"
_CODES = {"pass": PASS, "fail": GATE_FAILED, "inconclusive": INCONCLUSIVE}
_ARCHITECTURES = {"arm64": "aarch64", "AMD64": "x86_64", "amd64": "x86_64"}
_REPORT = "report.json"


def validate_on(
    package: Path, address: Address, python: str = DEFAULT_PYTHON, device: str | None = None
) -> dict[str, Any]:
    """The report of a package, measured on the host at `address`.

    `device`: the package's device that the host is; the host itself finds out by default. Raises
    InputRefusedError: no package, or changed; UsageError: no such device, or a package without the
    program; MissingError: the host cannot be reached, is another machine, or lacks Python, a
    library or space; what the program there reports.
    """
    with step_progress("validate") as progress:
        progress.update("checking the package's files")
        manifest = read_manifest(package)
        _check_package(manifest, device)
        assert manifest.digest is not None
        files = files_of(package, manifest.digest)
        job = {"name": folder_name(manifest.name), "files": files}
        progress.update(f"looking at {address}")
        found = ask(address, python, {**job, "do": "look"})
        _check_host(found, manifest, device, address, python)
        print_note(
            f"host     {address}: {found['system']} {_arch(found)}, Python {found['python']}, "
            + ", ".join(f"{name} {version}" for name, version in found["libraries"].items())
        )
        progress.update("copying what is missing there")
        send(address, python, package, job, found, lambda text: print_note(f"copy     {text}"))
        return _run(manifest, address, python, device, str(found["root"]), progress.update)


def _check_package(manifest: Manifest, device: str | None) -> None:
    if not (manifest.path / "self_test" / SELF_TEST_APP).is_file():
        msg = f"{manifest.path}: no self_test/{SELF_TEST_APP}, an older edgetune built it"
        raise UsageError(msg, "build the package again")
    if device not in (None, THIS_MACHINE) and device not in manifest.devices:
        known = ", ".join([*sorted(manifest.devices), THIS_MACHINE])
        msg = f"{manifest.path}: built for no device called {device!r}"
        raise UsageError(msg, f"its devices: {known}")


def _check_host(
    found: Mapping[str, Any], manifest: Manifest, device: str | None, address: Address, python: str
) -> None:
    """Refuse a host that lacks something before anything is sent. Raises MissingError."""
    libraries, oldest = found["libraries"], oldest_for(manifest.lock)
    install = f"there: {found['executable'] or python} -m pip install " + " ".join(
        f"'{name}>={oldest[name]}'" for name in libraries
    )
    if old := too_old({"python": found["python"]}, oldest):
        msg = f"{address}: too old for this package: {', '.join(old)}"
        raise MissingError(msg, "name a newer one with --python PATH")
    if missing := [name for name, version in libraries.items() if version is None]:
        msg = f"{address}: {python} there has no {', '.join(missing)}"
        raise MissingError(msg, f"{install}; or name another Python with --python PATH")
    if old := too_old({name: version or None for name, version in libraries.items()}, oldest):
        msg = f"{address}: too old for this package: {', '.join(old)}"
        raise MissingError(msg, install)
    _check_arch(_arch(found), manifest, device, address)


def _check_arch(arch: str, manifest: Manifest, device: str | None, address: Address) -> None:
    devices = manifest.devices if device is None else {device: manifest.devices.get(device, {})}
    wanted = {name: (entry.get("machine") or {}).get("arch") for name, entry in devices.items()}
    if not wanted or arch in wanted.values() or None in wanted.values():
        return
    named = ", ".join(f"{name} is {own}" for name, own in sorted(wanted.items()))
    msg = f"{address}: an {arch} machine; {named}"
    hint = f"name the device's own address, or try it on that machine with -d {THIS_MACHINE}"
    raise MissingError(msg, hint)


def _arch(found: Mapping[str, Any]) -> str:
    machine = str(found["machine"])
    return _ARCHITECTURES.get(machine, machine)


def _run(
    manifest: Manifest,
    address: Address,
    python: str,
    device: str | None,
    root: str,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Run the program there and bring its report back."""
    program, report = f"{root}/package/self_test/{SELF_TEST_APP}", f"{root}/{_REPORT}"
    command = [python, "-B", program, "-o", report, *(["-d", device] if device else [])]
    tell("running the self-test there")
    status, said = run(address, command, lambda line: tell(f"there: {line}"))
    if status not in _CODES.values():
        raise _failure_there(address, python, status, said)
    with tempfile.TemporaryDirectory(prefix="edgetune-on-") as folder:
        if why := copy(address, [f"get {quoted(report)} {_REPORT}"], Path(folder)):
            msg = f"{address}: the report did not come back: {why}"
            raise BrokenLinkError(msg, "run the same command again; nothing is copied twice")
        value = write_verdicts(load_report(Path(folder) / _REPORT))
    if value["package_digest"] != manifest.digest or _CODES[value["verdict"]] != status:
        msg = f"{address}: its report is not of this package and this run"
        raise InputRefusedError(msg, "run it again while nobody else uses the folder there")
    return value


def _failure_there(address: Address, python: str, status: int, said: str) -> EdgetuneError:
    """What the program there reported, or what ended it."""
    lines = said.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if status == BROKEN and not errors:
        msg = f"{address}: the link broke while the self-test ran: {last_line(said)}"
        return BrokenLinkError(msg, "run the same command again; nothing is copied twice")
    if not errors:
        return failure(address, python, status, said)
    text = "\n".join(lines[errors[-1] :])
    message, _, hint = text.removeprefix("error: ").partition("\nhint: ")
    return error_from_code(status, f"{address}: {message}", hint)
