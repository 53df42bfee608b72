"""`edgetune inspect`: what is this, what fits it, what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="What is this: model, adapter, checkpoint, package?")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def inspect(path: Path, as_json: bool, debug: bool) -> None:
    """Say what PATH is, what fits it, and what is wrong with it."""
    del debug  # read by __main__
    from edgetune.console import print_json, print_result
    from edgetune.errors import printable
    from edgetune.inspect import describe

    facts = describe(path)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, list):
            print_result(f"{key}:" + (" none" if not value else ""))
            for entry in value:
                print_result(printable(f"  - {entry}"))
        elif value is not None:
            print_result(printable(f"{key}: {value}"))
