"""`edgetune validate`: a package against the reference it carries, here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


@click.command(short_help="Check a package against the reference it carries.")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("-d", "--device", help="The device of the package to validate for.")
@click.option(
    "--emulate",
    is_flag=False,
    flag_value="",
    metavar="[DEVICE]",
    help="Also run it on that device's processor, emulated.",
)
@click.option("--thorough", is_flag=True, help="Also answer for a whole minute.")
@click.option(
    "--on",
    metavar="ssh://USER@HOST[:PORT]",
    help="Run it there, by the package's own self-test; or a device profile that says where.",
)
@click.option("--python", metavar="PATH", help="The Python on that host (python3).")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the report (JSON) here.")
@click.option(
    "--lm-eval",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write the results as lm-evaluation-harness does.",
)
@click.option("--json", "as_json", is_flag=True, help="The report on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def validate(
    package: Path,
    device: str | None,
    emulate: str | None,
    thorough: bool,
    on: str | None,
    python: str | None,
    out: Path | None,
    lm_eval: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Run PACKAGE on this host and compare it with the reference it carries.

    `--on ssh://user@host` runs it there: copies what that host lacks, and brings the report back.
    Needs no torch, and never writes into the package. `PACKAGE --emulate raspberry-pi-5` also
    runs a part of its self-test on that device's instructions, which finds what other kernels do
    to it, and says nothing about time.
    """
    del debug  # read by __main__
    from datetime import datetime

    from edgetune.console import print_json, print_note, print_result, print_table, print_warning
    from edgetune.errors import UsageError
    from edgetune.files import dump_json, write_text
    from edgetune.report.lm_eval import check_folder, write_lm_eval
    from edgetune.report.terminal import COLUMNS, summary_lines, table_rows
    from edgetune.validate.package import exit_code_of, validate_with_answers

    if out is not None and out.resolve().is_relative_to(package.resolve()):
        msg = f"{out}: inside the package, which a validation must leave as it is"
        raise UsageError(msg, "name a file elsewhere with -o")
    if emulate and device and emulate != device:
        msg = f"--emulate {emulate} and -d {device} name two devices"
        raise UsageError(msg, "leave -d out")
    if lm_eval is not None:
        check_folder(lm_eval, package)
    answers: dict[str, Any] = {}
    if on is not None:
        with_on = {"--emulate": emulate is not None, "--thorough": thorough, "--lm-eval": lm_eval}
        report = _elsewhere(package, on, python, device, with_on)
    elif python is not None:
        msg = "--python names a Python on another host"
        raise UsageError(msg, "say which host with --on ssh://user@host")
    else:
        report, answers = validate_with_answers(
            package, emulate or device, emulate is not None, thorough
        )
    if lm_eval is not None and report["fidelity"]["non_finite_positions"]:
        print_warning("outputs are not finite, nothing for --lm-eval")
    elif lm_eval is not None:
        for file in write_lm_eval(lm_eval, report, answers, datetime.now()):
            print_note(f"lm-eval  {file}")
    if out is not None:
        write_text(out, dump_json(report))
        print_note(f"report   {out}")
    if as_json:
        print_json(report)
    else:
        print_table(str(report["identifier"]), COLUMNS, table_rows(report), figures=True)
        for line in summary_lines(report):
            print_result(line)
    return exit_code_of(report)


def _elsewhere(
    package: Path, on: str, python: str | None, device: str | None, others: Mapping[str, object]
) -> dict[str, Any]:
    """The report from the host that `--on` names. `others`: options that do not go with it."""
    from edgetune.console import print_warning
    from edgetune.device import find_device
    from edgetune.errors import UsageError
    from edgetune.remote.address import parse_address
    from edgetune.remote.validate import DEFAULT_PYTHON, validate_on

    if used := [name for name, value in others.items() if value]:
        msg = f"--on does not go with {', '.join(used)}"
        raise UsageError(msg, "leave one of them out; each has a report of its own")
    if "://" not in on:
        profile = find_device(on)
        if profile.reach.address is None:
            msg = f"--on {on}: the profile does not say where the device is"
            raise UsageError(msg, "add reach: {by: ssh, address: 'ssh://user@host'} to it")
        on, python = profile.reach.address, python or profile.reach.python
        device = device or profile.name
    report = validate_on(package, parse_address(on), python or DEFAULT_PYTHON, device)
    if not report["evidence"]["on_device"]:
        print_warning(f"{on} is not a {report['device']}: no time was taken there")
    return report
