"""`edgetune search`: which scheme for this recipe? A table of size against what is lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_COLUMNS = (
    "scheme", "MB", "KL,\nnats", "retention", "top-1", "exact\nmatch", "prefill,\ntok/s",
    "decode,\ntok/s", "frontier", "verdict",
)  # fmt: skip


@click.command(short_help="Schemes side by side: size, what is lost, speed.")
@click.argument("recipe")
@click.option("-d", "--device", help="Device name or profile; default: the recipe's first.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default="out", show_default=True)
@click.option("--scheme", "schemes", multiple=True, help="Only these rows (repeat).")
@click.option("--predict", is_flag=True, help="Build nothing: what the sensitivities predict.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Also draw size against KL.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def search(**flags: Any) -> int:
    """Build and validate RECIPE with every scheme on offer, `auto`, and `auto` at a few sizes.

    Merge, reference and sensitivities are made once. Exit code 0: at least one row passes.
    """
    from edgetune.console import print_json, print_note, print_table
    from edgetune.files import write_text
    from edgetune.recipe import find_recipe, load_recipe
    from edgetune.report.frontier_plot import frontier_svg
    from edgetune.search import exit_code, plan_rows, predict_rows, run_rows

    plot = flags["plot"]
    if plot is not None and (plot.suffix != ".svg" or not plot.absolute().parent.is_dir()):
        msg = f"--plot {plot}: not an .svg file in a folder that exists"
        raise UsageError(msg, "for example --plot frontier.svg")
    if flags["predict"] and flags["schemes"]:
        msg = "--predict shows all that the sensitivities tell, so it takes no --scheme"
        raise UsageError(msg, "leave one of the two out")
    recipe = load_recipe(find_recipe(flags["recipe"]))
    if flags["predict"]:
        (plan,) = plan_rows(recipe, ["auto"], flags["device"], flags["out"])
        rows = predict_rows(plan, flags["out"])
    else:
        plans = plan_rows(recipe, flags["schemes"], flags["device"], flags["out"])
        print_note(f"search     {len(plans)} rows: {', '.join(p.recipe.scheme for p in plans)}")
        rows = run_rows(plans, flags["out"])
    if plot is not None:
        write_text(plot, frontier_svg(f"{recipe.name}: size against KL", rows))
        print_note(f"plot       {plot}")
    if flags["as_json"]:
        print_json({"recipe": recipe.name, "rows": rows})
    else:
        cells = [_cells(row) for row in rows]
        print_table(recipe.name, _COLUMNS, cells, figures=True, whole=True)
    return exit_code(rows)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    exact = (row["task_metrics"] or {}).get("exact_match")
    missing = "" if row["label"] == "predicted" else "not measured"
    return (
        f"{row['scheme']} (predicted)" if row["label"] == "predicted" else row["scheme"],
        missing if row["bytes"] is None else f"{row['bytes'] / 1e6:.2f}",
        missing if row["kl_mean"] is None else f"{row['kl_mean']['value']:.3g}",
        _share(row["retention"], missing),
        _share(row["top1_agreement"], missing),
        missing if exact is None else f"{100 * exact['candidate']:.1f} %",
        _speed(row["prefill_tokens_per_s"], missing),
        _speed(row["decode_tokens_per_s"], missing),
        "yes" if row["frontier"] else "",
        row["verdict"] or "",
    )


def _share(figure: Mapping[str, float] | None, missing: str) -> str:
    return missing if figure is None else f"{100 * figure['value']:.2f} %"


def _speed(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.0f}"
