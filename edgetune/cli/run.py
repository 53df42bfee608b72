"""`edgetune run`: try a package."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click


@click.command(short_help="Try a package: streams an answer to PROMPT.")
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("-d", "--device", help="Use this device's session settings.")
@click.option("--max-new-tokens", type=click.IntRange(1, 100_000), default=256, show_default=True)
@click.option("--raw", is_flag=True, help="Give PROMPT to the model as it is, without template.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def run(
    package: Path,
    prompt: str | None,
    device: str | None,
    max_new_tokens: int,
    raw: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Stream PACKAGE's answer to PROMPT; without PROMPT, read prompts line by line."""
    del debug  # read by __main__
    from edgetune.console import print_json, print_note, print_result
    from edgetune.runtime.chat import open_chat

    chat = open_chat(package, device)
    prompts = [prompt] if prompt is not None else (line.rstrip("\n") for line in sys.stdin)
    if prompt is None and sys.stdin.isatty():
        print_note("one prompt a line; Ctrl-D ends")
    answers = []
    for text in prompts:
        started, pieces = time.perf_counter(), []
        for piece in chat.stream(text, max_new_tokens, raw=raw):
            pieces.append(piece)
            if not as_json:
                print_result(piece, end="")
        if not as_json:
            print_result("")
        seconds = time.perf_counter() - started
        answers.append({"prompt": text, "answer": "".join(pieces), "seconds": round(seconds, 4)})
    if as_json:
        print_json({"answers": answers})
