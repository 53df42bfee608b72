"""`edgetune validate`: a package against the reference it carries, here."""

from __future__ import annotations

from pathlib import Path

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
    out: Path | None,
    lm_eval: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Run PACKAGE on this host and compare it with the reference it carries.

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
