"""An adapter from a folder that PEFT wrote, or from the hub by id and revision."""

from __future__ import annotations

from edgetune.checkpoint.adapter import Adapter, read_adapter
from edgetune.errors import InputRefusedError
from edgetune.inputs import Origin
from edgetune.sources.huggingface import ADAPTER_FILES, ADAPTER_PICKLES, find_folder, hub_refusal


def find_adapter(
    path: str, revision: str | None = None, *, pickled: bool = False
) -> tuple[Adapter, Origin]:
    """The adapter in a folder or of a hub id: its configuration and the table of its tensors.

    PEFT saves an adapter that is not called `default` into a sub-folder of that name; a single
    such sub-folder is taken. `pickled`: see `read_adapter`. Raises InputRefusedError for anything
    else, and as `find_folder` does.
    """
    pickles = ADAPTER_PICKLES if pickled else ()
    found = find_folder(path, revision, ADAPTER_FILES, "adapter", pickles)
    folder = found.folder
    if not (folder / "adapter_config.json").is_file():
        named = sorted(p.parent for p in folder.glob("*/adapter_config.json"))
        if len(named) > 1:
            names = ", ".join(p.name for p in named)
            msg = f"{path}: holds several adapters ({names})"
            raise InputRefusedError(msg, "name one of them")
        if named:
            folder = named[0]
    origin = found.origin if found.origin.commit else Origin(folder.name)
    try:
        return read_adapter(folder, pickled=pickled), origin
    except InputRefusedError as why:
        raise hub_refusal(why, found, pickled=pickled) from why
