"""Under which license a base or an adapter is: what its own folder says, never a guess.

The front matter of its README.md (the Hugging Face model card: `license`, and `license_name` where
that is `other`), else `license` in its configuration, else the title of its LICENSE file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.files import is_file

CARD = "README.md"
_CONFIGS = ("config.json", "adapter_config.json")
_TEXTS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_MOST_BYTES = 256 << 10
_MOST_CHARACTERS = 120


@dataclass(frozen=True)
class License:
    """`name` as the file `source` has it; without one, `reason` says why."""

    name: str | None
    source: str | None = None
    reason: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """For the lock."""
        return {"name": self.name, "source": self.source, "reason": self.reason}


def read_license(folder: Path) -> License:
    """What the folder says of its license. A file that cannot be read says nothing, and the reason
    names it."""
    unfit = []
    for name, read in (
        (CARD, _from_card),
        *((name, _from_config) for name in _CONFIGS),
        *((name, _from_text) for name in _TEXTS),
    ):
        if not is_file(folder / name):
            continue
        try:
            text = _read(folder / name)
            found = read(text)
        except ValueError as why:
            unfit.append(f"{name}: {why}")
            continue
        if found:
            return License(_one_line(found), name)
    nothing = "no license in README.md or configuration, and no LICENSE file"
    return License(None, None, "; ".join(unfit) or nothing)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", errors="replace")
    except OSError as why:
        raise ValueError(why.strerror) from why


def _from_card(text: str) -> str | None:
    """The model card's `license`: a name, or a list of them."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    end = next((n for n, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        return None
    card = _yaml("\n".join(lines[1:end]))
    value = card.get("license")
    if value == "other":
        value = card.get("license_name") or value
    if isinstance(value, list):
        return ", ".join(str(name) for name in value)
    return str(value) if value is not None else None


def _yaml(text: str) -> Mapping[str, Any]:
    from ruamel.yaml import YAML

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except Exception as why:  # the parser raises all kinds for odd tags and keys
        msg = "its front matter is not YAML"
        raise ValueError(msg) from why
    return value if isinstance(value, Mapping) else {}


def _from_config(text: str) -> str | None:
    value = json.loads(text)
    found = value.get("license") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _from_text(text: str) -> str | None:
    """The first two lines that have text: "Apache License Version 2.0, January 2004"."""
    lines = [line.strip(" #*\t") for line in text.splitlines()]
    return " ".join([line for line in lines if line][:2]) or None


def _one_line(text: str) -> str:
    clean = "".join(c if c.isprintable() else " " for c in text).strip()
    return clean if len(clean) <= _MOST_CHARACTERS else f"{clean[: _MOST_CHARACTERS - 1]}…"
