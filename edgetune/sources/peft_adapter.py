"""An adapter from a folder that PEFT wrote."""

from __future__ import annotations

from pathlib import Path

from edgetune.checkpoint.adapter import Adapter, read_adapter
from edgetune.errors import InputRefusedError
from edgetune.files import is_folder


def find_adapter(path: str, *, pickled: bool = False) -> Adapter:
    """The adapter in a folder: its configuration and the table of its tensors.

    PEFT saves an adapter that is not called `default` into a sub-folder of that name; a single
    such sub-folder is taken. `pickled`: see `read_adapter`. Raises InputRefusedError for anything
    else.
    """
    folder = Path(path)
    if not is_folder(folder):
        msg = f"{path}: no such adapter folder"
        raise InputRefusedError(msg, "name the folder that holds adapter_config.json")
    if not (folder / "adapter_config.json").is_file():
        named = sorted(p.parent for p in folder.glob("*/adapter_config.json"))
        if len(named) > 1:
            names = ", ".join(p.name for p in named)
            msg = f"{path}: holds several adapters ({names})"
            raise InputRefusedError(msg, "name one of them")
        if named:
            folder = named[0]
    return read_adapter(folder.resolve(), pickled=pickled)
