"""A base from a Hugging Face folder, or from the hub by id and revision."""

from __future__ import annotations

import re
from pathlib import Path

from edgetune.checkpoint.foreign import ORIGINAL, other_format
from edgetune.errors import InputRefusedError, MissingError, UsageError
from edgetune.files import is_file, is_folder

# Weights as safetensors, configuration and tokenizer; never code, never pickles.
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_checkpoint(path: str, revision: str | None) -> Path:
    """The local folder of a base. A hub id is looked up in the cache, then downloaded unless
    HF_HUB_OFFLINE is set.

    Raises UsageError for a path that is no folder, MissingError when the hub cannot be reached,
    InputRefusedError when the hub has no such model.
    """
    folder = Path(path)
    if is_folder(folder):
        if revision is not None:
            msg = f"{path}: a folder has no revision, and the recipe gives {revision!r}"
            raise UsageError(msg, "leave `revision` out, or name a hub id")
        return folder.resolve()
    if is_file(folder):
        found = other_format(folder) or f"{folder.name} is a file"
        msg = f"{path}: no model folder; {found}"
        raise InputRefusedError(msg, ORIGINAL)
    if not _HUB_ID.fullmatch(path):
        msg = f"{path}: no such model folder"
        raise InputRefusedError(msg, "name a Hugging Face folder, or a hub id like owner/name")
    return _from_hub(path, revision)


def _from_hub(identifier: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as why:
        msg = f"{identifier}: not a folder, and huggingface_hub is not installed to look it up"
        raise MissingError(msg, "python -m pip install 'edgetune[build]'") from why
    try:
        return Path(snapshot_download(identifier, revision=revision, allow_patterns=_PATTERNS))
    except LocalEntryNotFoundError as why:
        msg = f"{identifier}: no folder here, not in the hub's cache, and the hub is out of reach"
        hint = "download it first, or check the name and the network (HF_HUB_OFFLINE?)"
        raise MissingError(msg, hint) from why
    except HfHubHTTPError as why:
        msg = f"{identifier}: the hub refuses it ({str(why).splitlines()[0]})"
        raise InputRefusedError(msg, "check the id, the revision and your access token") from why
