"""`edgetune report`: one page for people, of one package or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = click.Path(path_type=Path)
DEFAULT = Path("edgetune-report.html")


@click.command(short_help="One page for people: a report, or packages side by side.")
@click.argument("reports", nargs=-1, type=_PATH, metavar="REPORT...")
@click.option("-o", "--out", type=_PATH, metavar="FILE", help=f"The page.  [{DEFAULT}]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def report(reports: tuple[Path, ...], out: Path | None, as_json: bool, debug: bool) -> int:
    """Write one self-contained HTML page of REPORTs: no network, no script.

    REPORT is a report file, a package, or a folder of either, as for `edgetune gate`; verdicts are
    judged anew. The exit code says whether the page was written: 0, 2 for a file that may not be
    written, 4 for a report refused. `edgetune gate` has the verdict as exit code.

    \b
    edgetune report out/demo
    edgetune report out/demo out/demo-erased -o compared.html
    """
    del debug  # read by __main__
    if not reports:
        msg = "nothing to show: name a report"
        raise UsageError(msg, "edgetune report out/demo")

    from edgetune.console import print_json, print_note, print_result
    from edgetune.report.collect import find_reports
    from edgetune.report.gate import gate_reports
    from edgetune.report.outputs import write_output
    from edgetune.report.page.page import make_page
    from edgetune.report.page.shown import Shown
    from edgetune.report.regression import Margins

    page = out or DEFAULT
    _check_output(page, reports, named=out is not None)
    outcome = gate_reports(find_reports(reports), None, Margins())
    shown = [Shown(one.title, one.report, one.judgement, one.notes) for one in outcome.gated]
    write_output(page, make_page(shown), "-o")
    if as_json:
        print_json({"page": str(page), "reports": outcome.as_json()["reports"]})
        return 0
    for one in outcome.gated:
        print_note(f"{one.judgement.verdict:<13} {one.title}")
    print_result(f"page     {page}")
    return 0


def _check_output(page: Path, reports: Sequence[Path], *, named: bool) -> None:
    """Raises UsageError for a page that would destroy a file of somebody else's or lie in a
    package."""
    from edgetune.files import is_file, is_folder

    if is_folder(page):
        msg = f"{page}: a folder"
        raise UsageError(msg, "name a file with -o, such as report.html")
    place = page.resolve()
    for folder in place.parents:
        if is_file(folder / "SHA256SUMS"):
            msg = f"{page}: inside the package {folder}, which a report must leave as it is"
            raise UsageError(msg, "name a file elsewhere with -o")
    if any(place == report.resolve() for report in reports):
        msg = f"{page}: would overwrite the report that it is made of"
        raise UsageError(msg, "name another file with -o")
    if not named and is_file(page) and not _is_ours(page):
        msg = f"{page}: there is such a file, and it is no page of edgetune's"
        raise UsageError(msg, "name another file with -o")


def _is_ours(page: Path) -> bool:
    """Whether a file is a page that this command wrote, and may write again."""
    from edgetune.report.page.page import GENERATOR

    with page.open("rb") as file:
        return f'name="generator" content="{GENERATOR} '.encode() in file.read(4096)
