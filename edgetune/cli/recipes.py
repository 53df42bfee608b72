"""`edgetune recipes`: the shipped recipes, and a commented one to start from."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(short_help="Recipes: list, show, init.")
def recipes() -> None:
    """Recipes: list the shipped ones, show one, write one to start from."""


@recipes.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_recipes(as_json: bool) -> None:
    """List the shipped recipes."""
    from edgetune.console import print_json, print_table
    from edgetune.files import shipped_folder
    from edgetune.recipe import load_recipe

    known = [load_recipe(path) for path in sorted(shipped_folder("recipes").glob("*.yaml"))]
    if as_json:
        rows = [
            {
                "name": r.name,
                "task": r.task,
                "scheme": r.scheme,
                "adapters": len(r.adapters),
                "devices": list(r.devices),
                "description": r.description,
            }
            for r in known
        ]
        print_json({"recipes": rows})
        return
    print_table(
        "",
        ("recipe", "task", "scheme", "description"),
        [(r.name, r.task, r.scheme, r.description) for r in known],
    )


@recipes.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def show_recipe(name: str, as_json: bool) -> None:
    """Show one recipe: the file as it stands."""
    from edgetune.console import print_json, print_result
    from edgetune.recipe import find_recipe, load_recipe

    path = find_recipe(name)
    recipe = load_recipe(path)
    if as_json:
        print_json(recipe.model_dump(mode="json"))
    else:
        print_result(path.read_text(encoding="utf-8"), end="")


@recipes.command("init")
@click.argument("file", type=click.Path(path_type=Path), default=Path("my-model.yaml"))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def init_recipe(file: Path, as_json: bool) -> None:
    """Write a commented recipe to FILE (default my-model.yaml)."""
    from edgetune.console import print_json, print_note
    from edgetune.errors import UsageError
    from edgetune.files import write_text
    from edgetune.recipe import TEMPLATE

    if file.suffix != ".yaml" or file.exists():
        msg = f"{file}: exists already" if file.exists() else f"{file}: a recipe ends in .yaml"
        raise UsageError(msg, "name a new file, for example edgetune recipes init support-bot.yaml")
    write_text(file, TEMPLATE)
    if as_json:
        print_json({"file": str(file)})
    print_note(f"wrote {file}; edit it, then: edgetune build {file} --plan")
