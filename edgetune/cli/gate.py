"""`edgetune gate`: one verdict over reports, for CI."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.errors import GATE_FAILED, INCONCLUSIVE, PASS, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgetune.report.gate import Outcome
    from edgetune.report.regression import Margins

_CODES = {"pass": PASS, "fail": GATE_FAILED, "inconclusive": INCONCLUSIVE}
# option, the largest value that means something, what the value is
_MARGINS = {
    "max_drop": (1.0, "a share of the items, 0.02 for two points"),
    "max_kl_rise": (math.inf, "nats"),
    "max_slowdown": (1.0, "a share of the baseline's time, 0.1 for 10 %"),
    "max_growth": (1.0, "a share of the baseline's bytes, 0.05 for 5 %"),
}
_PATH = click.Path(path_type=Path)


@click.command(short_help="One verdict over reports, for CI: exit code, JUnit, Markdown.")
@click.argument("reports", nargs=-1, type=_PATH, metavar="REPORT...")
@click.option("--baseline", type=_PATH, help="Earlier report, package, or folder of reports.")
@click.option("--max-drop", type=float, help="Exact match lost since the baseline.  [0.02]")
@click.option("--max-kl-rise", type=float, help="KL gained since the baseline, nats.  [0.01]")
@click.option("--max-slowdown", type=float, help="Time gained since the baseline.  [0.1]")
@click.option("--max-growth", type=float, help="Bytes gained since the baseline.  [0.05]")
@click.option(
    "--require-latency",
    is_flag=True,
    help="Times that cannot be compared with the baseline's are inconclusive.",
)
@click.option("--junit", type=_PATH, metavar="FILE", help="Write JUnit XML here.")
@click.option("--summary", type=_PATH, metavar="FILE", help="Write Markdown here.")
@click.option("--annotations", is_flag=True, help="Print GitHub annotations (::error …).")
@click.option(
    "--self-test", is_flag=True, help="Prove on this machine that the gate decides right."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def gate(**flags: Any) -> int:
    """Judge reports anew from their figures, alone or against a BASELINE.

    REPORT is a report file, a package, or a folder of either; a package is checked against its
    checksums. Exit codes: 0 pass, 1 fail, 2 reports that cannot be compared, 4 a report refused,
    5 inconclusive. Of several reports the worst counts: fail, inconclusive, pass.

    \b
    edgetune gate out/demo --junit gate.xml --summary gate.md --annotations
    edgetune gate out/demo --baseline main/demo.json --max-slowdown 0.2
    """
    if flags["self_test"]:
        return _self_test(flags)
    if not flags["reports"]:
        msg = "nothing to judge: name a report"
        raise UsageError(msg, "edgetune gate out/demo, or edgetune gate --self-test")
    margins = _margins(flags)

    from edgetune.report.collect import find_reports
    from edgetune.report.gate import gate_reports

    found = find_reports(flags["reports"])
    baselines = None if flags["baseline"] is None else find_reports([flags["baseline"]])
    _check_outputs(flags)
    outcome = gate_reports(found, baselines, margins)
    _write_files(outcome, flags)
    _show(outcome, flags)
    return _CODES[outcome.verdict]


def _margins(flags: Mapping[str, Any]) -> Margins:
    """The margins given. Raises UsageError for one that is none, or that nothing would use."""
    from edgetune.report.regression import Margins

    given = {name: flags[name] for name in _MARGINS if flags[name] is not None}
    for name, value in given.items():
        most, what = _MARGINS[name]
        if not (math.isfinite(value) and 0 <= value <= most):
            option = f"--{name.replace('_', '-')}"
            upper = f" and at most {most:g}" if math.isfinite(most) else ""
            msg = f"{option} {value:g}: a margin is a finite number, at least 0{upper}"
            raise UsageError(msg, f"it is {what}")
    unused = [*given, *(["require_latency"] if flags["require_latency"] else [])]
    if unused and flags["baseline"] is None:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        msg = f"{options}: a margin against which baseline?"
        hint = "name one with --baseline; the limits of a report alone are its recipe's"
        raise UsageError(msg, hint)
    names = {name.removeprefix("max_"): value for name, value in given.items()}
    return Margins(**names, require_latency=flags["require_latency"])


def _check_outputs(flags: Mapping[str, Any]) -> None:
    """Raises UsageError for a file that cannot be written, or that would destroy an input."""
    from edgetune.files import is_file, is_folder

    outputs = [(name, flags[name]) for name in ("junit", "summary") if flags[name] is not None]
    inputs = [*flags["reports"], *([flags["baseline"]] if flags["baseline"] else [])]
    for name, path in outputs:
        if is_folder(path):
            msg = f"--{name} {path}: a folder"
            raise UsageError(msg, "name a file, such as gate.xml")
        for place in inputs:
            same = _real(path) == _real(place)
            inside = is_folder(place) and _real(path).is_relative_to(_real(place))
            if same or (inside and is_file(place / "SHA256SUMS")):
                msg = f"--{name} {path}: would overwrite or add to what is judged ({place})"
                raise UsageError(msg, "name a file elsewhere")
    if len(outputs) == 2 and _real(outputs[0][1]) == _real(outputs[1][1]):
        msg = f"--junit and --summary name one file, {outputs[0][1]}"
        raise UsageError(msg, "name two files")


def _real(path: Path) -> Path:
    """As `Path.resolve`; a link that leads to itself stays."""
    return Path(os.path.realpath(path))


def _write_files(outcome: Outcome, flags: Mapping[str, Any]) -> None:
    """Both files, each whole or not at all, whatever the verdict."""
    from edgetune.console import print_note
    from edgetune.report.junit import to_junit
    from edgetune.report.outputs import write_output
    from edgetune.report.summary import to_summary

    for name, make in (("junit", to_junit), ("summary", to_summary)):
        if flags[name] is not None:
            write_output(flags[name], make(outcome), f"--{name}")
            print_note(f"{name:<8} {flags[name]}")


def _show(outcome: Outcome, flags: Mapping[str, Any]) -> None:
    from edgetune.console import print_json, print_note, print_result, print_table, print_warning
    from edgetune.errors import printable
    from edgetune.report.annotations import to_annotations
    from edgetune.report.gate_table import BASELINE_COLUMNS, baseline_rows, gate_lines, outcome_line
    from edgetune.report.terminal import COLUMNS, table_rows

    for one in outcome.gated:
        for note in one.notes:
            print_warning(note)
    if flags["as_json"]:
        print_json(outcome.as_json())
    else:
        for one in outcome.gated:
            print_table(printable(one.title), COLUMNS, table_rows(one.report), figures=True)
            if rows := baseline_rows(one):
                print_table("", BASELINE_COLUMNS, rows, figures=True)
            for line in gate_lines(one):
                print_result(printable(line))
        print_result(outcome_line(outcome))
    # The runner reads both streams; a JSON document stays one.
    show = print_note if flags["as_json"] else print_result
    for line in to_annotations(outcome) if flags["annotations"] else ():
        show(line)


def _self_test(flags: Mapping[str, Any]) -> int:
    """Identical models must pass, what is slower or worse must fail: measured here."""
    others = ("baseline", "junit", "summary", *_MARGINS)
    given = [f"--{name.replace('_', '-')}" for name in others if flags[name] is not None]
    given += ["--annotations"] if flags["annotations"] else []
    given += ["--require-latency"] if flags["require_latency"] else []
    if flags["reports"] or given:
        named = ", ".join([*map(str, flags["reports"]), *given])
        msg = f"--self-test judges the gate and no report: {named}"
        raise UsageError(msg, "leave it out, or run the gate without --self-test")

    from edgetune.console import print_json, print_result, print_table, step_progress
    from edgetune.report.gate_table import SELF_TEST_COLUMNS, self_test_rows
    from edgetune.validate.gate_self_test import self_test_gate

    with step_progress("self-test") as progress:
        found = self_test_gate(progress.update)
    wrong = [check for check in found["checks"] if not check["as_expected"]]
    count = len(found["checks"])
    if as_json := flags["as_json"]:
        print_json(found)
    else:
        print_table("", SELF_TEST_COLUMNS, self_test_rows(found["checks"]), figures=True)
    if count and not wrong:
        code, says = PASS, f"pass: each of {count} outcomes is as expected"
    elif found["verdict"] == "inconclusive":
        code, says = INCONCLUSIVE, f"inconclusive: too noisy here to tell {len(wrong)} of {count}"
    else:
        code, says = GATE_FAILED, f"fail: {len(wrong)} of {count} outcomes are wrong"
    if not as_json:
        print_result(f"gate     {says}")
    return code
