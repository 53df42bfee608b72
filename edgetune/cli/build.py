"""`edgetune build`: the straight line from base model and adapters to a validated package."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgetune.build import Build
    from edgetune.plan import Plan
    from edgetune.recipe import Recipe

_STEPS = ("merge", "reference", "optimize", "package", "validate")


@click.command(short_help="Base model + adapters → a validated package for each device.")
@click.argument("recipe", required=False)
@click.option("-m", "--model", help="Base: a Hugging Face folder, or owner/name[@revision].")
@click.option(
    "-a",
    "--adapter",
    "adapters",
    multiple=True,
    help="PEFT adapter: a folder or a hub id (repeat).",
)
@click.option("-d", "--device", "devices", multiple=True, help="Device name or profile (repeat).")
@click.option("-o", "--out", type=click.Path(path_type=Path), default="out", show_default=True)
@click.option("--task", help="Task, named as Hugging Face pipelines are.")
@click.option("--data", help="Evaluation data, JSON lines.")
@click.option(
    "--self-test-data",
    type=click.Choice(["evaluation", "builtin"]),
    help="Text that the package carries; builtin: none of the data.",
)
@click.option("--trained-as", help="The 4-bit base the adapter saw: nf4|fp4[+double][:bfloat16].")
@click.option(
    "--onto",
    type=click.Choice(["dequantized", "original", "auto"]),
    help="QLoRA: merge onto; auto: the better of both.",
)
@click.option("--scheme", help="Quantization scheme, for example w8a16-rtn or w8a16-rtn-g128.")
@click.option(
    "--kv-cache", type=click.Choice(["float32", "int8"]), help="How keys and values are held."
)
@click.option("--merge-dtype", type=click.Choice(["float32", "base"]), help="Merged tensors' type.")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights, confined.")
@click.option("--thorough", is_flag=True, help="Measure what takes minutes, too.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be done and why; stop.")
@click.option("--only", default="*", help="Build identifiers that match, e.g. '*@this-machine'.")
@click.option("--until", type=click.Choice(_STEPS), default=_STEPS[-1], help="Stop after a step.")
@click.option(
    "--lm-eval",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write the results as lm-evaluation-harness does.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def build(**flags: Any) -> int:
    """Merge, quantize, package and validate RECIPE (a file or a shipped recipe's name).

    Flags alone are enough: edgetune build -m MODEL -a ADAPTER -d DEVICE -o OUT
    """
    if not flags["allow_pickle"]:
        return _build(flags, None)
    # What pickles are converted into is needed until the command ends.
    with tempfile.TemporaryDirectory(prefix="edgetune-pickle-") as pickles:
        return _build(flags, Path(pickles))


def _build(flags: dict[str, Any], pickles: Path | None) -> int:
    from edgetune.build import exit_code, prepare_builds, run_builds
    from edgetune.console import print_json
    from edgetune.planning import note_plans, plan_as_json, plan_builds

    recipe = _recipe_of(flags)
    if flags["lm_eval"] is not None:
        _check_lm_eval(flags, recipe)
    if not flags["plan_only"]:
        prepare_builds(recipe, flags["out"])
    plans = plan_builds(recipe, flags["devices"], flags["out"], flags["only"], pickles)
    if flags["plan_only"]:
        if flags["as_json"]:
            print_json(plan_as_json(plans, flags["out"], flags["thorough"]))
        else:
            note_plans(plans, flags["out"])
            _show_plan(plans, flags["out"], flags["thorough"])
        return 0
    note_plans(plans, flags["out"])
    builds = run_builds(plans, flags["out"], flags["until"], flags["thorough"])
    if flags["lm_eval"] is not None:
        _write_lm_eval(flags["lm_eval"], builds)
    if flags["as_json"]:
        print_json({"builds": [b.as_json() for b in builds]})
    else:
        _show_builds(builds)
    return exit_code(builds)


def _check_lm_eval(flags: dict[str, Any], recipe: Recipe) -> None:
    from edgetune.report.lm_eval import check_folder

    if flags["until"] != _STEPS[-1]:
        msg = f"--lm-eval needs the validation, and --until {flags['until']} ends before it"
        raise UsageError(msg, "leave --until out")
    check_folder(flags["lm_eval"], flags["out"] / recipe.name)


def _write_lm_eval(folder: Path, builds: Sequence[Build]) -> None:
    from datetime import datetime

    from edgetune.build import load_report
    from edgetune.console import print_note, print_warning
    from edgetune.files import read_json
    from edgetune.report.lm_eval import write_lm_eval

    for build in builds:
        if build.answers is None:
            print_warning(f"{build.identifier}: outputs are not finite, nothing for --lm-eval")
            continue
        report, answers = load_report(build), read_json(build.answers)
        for file in write_lm_eval(folder, report, answers, datetime.now()):
            print_note(f"lm-eval    {file}")


def _recipe_of(flags: dict[str, Any]) -> Recipe:
    """The recipe file with the flags laid over it, or a recipe made of flags alone."""
    from pydantic import ValidationError

    from edgetune.recipe import Recipe, find_recipe, load_recipe, parse_trained_as

    if flags["recipe"] is None and flags["model"] is None:
        msg = "nothing to build: name a recipe, or a base model with -m"
        raise UsageError(msg, "`edgetune build demo` builds the built-in demo")
    values: dict[str, Any] = {}
    if flags["recipe"] is not None:
        values = load_recipe(find_recipe(flags["recipe"])).model_dump()
    else:
        values = {"name": _name_of(flags["adapters"], flags["model"])}
    if flags["model"] is not None:
        values["base"] = {"path": flags["model"]}
    if flags["adapters"]:
        values["adapters"] = tuple({"path": path} for path in flags["adapters"])
    if flags["data"] is not None:
        values["data"] = {"evaluation": flags["data"]}
    if flags["trained_as"] is not None:
        values["base"]["trained_as"] = parse_trained_as(flags["trained_as"]).model_dump()
    if flags["scheme"] is not None:
        # A scheme on the command line replaces the recipe's scheme with its group size.
        values["scheme"], values["group_size"] = flags["scheme"], None
    for key in ("task", "self_test_data", "onto", "merge_dtype", "kv_cache"):
        if flags[key] is not None:
            values[key] = flags[key]
    try:
        return Recipe.model_validate(values)
    except ValidationError as why:
        error = why.errors()[0]
        where = ".".join(map(str, error["loc"]))
        msg = f"{where}: {error['msg'].removeprefix('Value error, ')}"
        raise UsageError(msg, "see `edgetune build --help`") from why


def _name_of(adapters: Sequence[str], model: str) -> str:
    """A package name from the folders' names: the adapters', else the model's."""
    parts = [Path(a).resolve().name for a in adapters] or [Path(model).name]
    name = re.sub(r"[^a-z0-9._-]+", "-", "-".join(parts).lower()).strip("-._")[:64]
    return name if name and name != "steps" else "model"


def _show_plan(plans: Sequence[Plan], out: Path, thorough: bool) -> None:
    from edgetune.console import print_table
    from edgetune.planning import describe_steps

    columns = ("build", "step", "state", "why")
    print_table("", columns, describe_steps(plans, out, thorough))


def _show_builds(builds: Sequence[Build]) -> None:
    from edgetune.build import load_report
    from edgetune.console import print_result, print_table
    from edgetune.report.terminal import COLUMNS, summary_lines, table_rows

    for build in builds:
        if build.report is not None:
            report = load_report(build)
            print_table(build.identifier, COLUMNS, table_rows(report), figures=True)
            for line in summary_lines(report):
                print_result(line)
            print_result(f"package  {build.package}")
            print_result(f"report   {build.report}")
            print_result(f"         {build.report.with_suffix('.md')}")
            print_result(f"         {build.report.with_suffix('.html')}")
        else:
            print_result(f"{build.identifier}")
            for step in build.steps:
                print_result(f"  {step.name:<10} {step.path}")
