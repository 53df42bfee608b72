"""`edgetune inspect`: what is this, what fits it, what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    for line in _lines(facts):
        print_result(printable(line))


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested facts, one a line; what is not known is left out."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, f"{indent}  ")
        elif isinstance(value, list | tuple):
            yield f"{indent}{key}:" + ("" if value else " none")
            for entry in value:
                lines = _lines(entry) if isinstance(entry, Mapping) else iter([str(entry)])
                yield f"{indent}  - {next(lines, '')}"
                yield from (f"{indent}    {line}" for line in lines)
        elif value is not None:
            shown = str(value).lower() if isinstance(value, bool) else value
            yield f"{indent}{key}: {shown}"
