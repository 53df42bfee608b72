"""The gate's files: whole or not at all, and GitHub's own summary file added to, not replaced."""

from __future__ import annotations

import os
from pathlib import Path

from edgetune.errors import MissingError
from edgetune.files import write_text


def write_output(path: Path, text: str, option: str) -> None:
    """Write a file under its final name once it is whole.

    What other commands of the same step wrote into `$GITHUB_STEP_SUMMARY` stays, before the text.
    Raises MissingError naming the option when the file cannot be written.
    """
    try:
        if _is_step_summary(path) and path.is_file():
            before = path.read_text(encoding="utf-8", errors="replace")
            gap = "" if not before or before.endswith("\n") else "\n"
            text = f"{before}{gap}{text}"
        write_text(path, text)
    except OSError as why:
        msg = f"{option} {path}: cannot be written ({why.strerror or why})"
        raise MissingError(msg, "name a file in a folder that you may write to") from why


def _is_step_summary(path: Path) -> bool:
    known = os.environ.get("GITHUB_STEP_SUMMARY")
    return bool(known) and os.path.realpath(path) == os.path.realpath(str(known))
