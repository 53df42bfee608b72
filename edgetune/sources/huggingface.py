"""What the Hugging Face hub calls `owner/name`, at a revision: from its cache on this machine, else
downloaded, unless HF_HUB_OFFLINE is set. HF_HOME, HF_HUB_CACHE and HF_TOKEN are huggingface_hub's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.checkpoint.foreign import ORIGINAL, other_format
from edgetune.errors import EdgetuneError, InputRefusedError, MissingError, UsageError
from edgetune.files import is_file, is_folder
from edgetune.inputs import Origin

# Weights as safetensors, configuration and tokenizer; never code, never pickles. Nor the same
# weights a second time, as some repositories keep them in their makers' own format.
BASE_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "*.jinja")
# With --allow-pickle, and where there are no safetensors.
BASE_PICKLES = ("pytorch_model*.bin",)
ADAPTER_PICKLES = ("adapter_model.bin",)
_NOT_THESE = ("consolidated*.safetensors", "*/*.safetensors", "*/*.json", "*/*.txt", "*/*.model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]*")
_ADAPTER = "name the folder that holds adapter_config.json"
_CHECK = "check the id, the revision and the network; HF_HUB_OFFLINE forbids every download"


@dataclass(frozen=True)
class Found:
    """A local folder, and what it is called."""

    folder: Path
    origin: Origin


def find_folder(
    path: str, revision: str | None, files: Sequence[str], what: str, pickles: Sequence[str] = ()
) -> Found:
    """The local folder of `path`: itself, or the cached snapshot of a hub id (`owner/name` or
    `owner/name@revision`), whose files that match `files` are downloaded if need be; `pickles`,
    too, where it has no safetensors.

    `what` is "model" or "adapter". Raises UsageError for a folder with a revision or two revisions,
    InputRefusedError for what is neither folder nor hub id and for what the hub does not have,
    MissingError when the hub cannot be reached or asked and the cache does not have it.
    """
    folder = Path(path)
    if is_folder(folder):
        if revision is not None:
            msg = f"{path}: a folder has no revision, and the recipe gives {revision!r}"
            raise UsageError(msg, "leave `revision` out, or name a hub id")
        return Found(folder.resolve(), Origin(folder.resolve().name))
    if is_file(folder):
        found = other_format(folder) or f"{folder.name} is a file"
        msg = f"{path}: no {what} folder; {found}"
        raise InputRefusedError(msg, ORIGINAL if what == "model" else _ADAPTER)
    identifier, mark, named = path.partition("@")
    if not _HUB_ID.fullmatch(identifier):
        msg = f"{path}: no such {what} folder"
        raise InputRefusedError(msg, "name a Hugging Face folder, or a hub id like owner/name")
    if mark and revision not in (None, named):
        msg = f"{path}: names one revision, and the recipe gives {revision!r}"
        raise UsageError(msg, "leave one of the two out")
    wanted = named if mark else revision
    if wanted is not None and not _REVISION.fullmatch(wanted):
        msg = f"{path}: {wanted!r} is no revision"
        raise InputRefusedError(msg, "name a branch, a tag or a commit, as owner/name@revision")
    snapshot = _snapshot(identifier, wanted, files)
    if pickles and not any(snapshot.glob("*.safetensors")):
        snapshot = _snapshot(identifier, snapshot.name, [*files, *pickles])
    return Found(snapshot, Origin(identifier, wanted, snapshot.name))


def find_checkpoint(path: str, revision: str | None = None, *, pickled: bool = False) -> Found:
    """The local folder of a base, pickles taken if `pickled`; see `find_folder`."""
    return find_folder(path, revision, BASE_FILES, "model", BASE_PICKLES if pickled else ())


def hub_refusal(why: InputRefusedError, found: Found, *, pickled: bool) -> InputRefusedError:
    """The refusal of what came from the hub, which may be incomplete; of a folder as it is."""
    if found.origin.commit is None:
        return why
    # The hub's cache keeps no list of a snapshot that an older version began to download.
    hint = f"{why.hint}; if a download broke off, delete {found.folder} and download it again"
    if not pickled and not any(found.folder.glob("*.safetensors")):
        hint += "; if it has pickles only, --allow-pickle downloads and reads them, confined"
    return InputRefusedError(why.message, hint)


def _snapshot(identifier: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder `snapshots/<commit>` in the hub's cache, whole."""
    label = identifier if revision is None else f"{identifier}@{revision}"
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as why:
        msg = f"{label}: not a folder, and huggingface_hub is not installed to look it up"
        raise MissingError(msg, "python -m pip install 'edgetune[build]'") from why
    try:
        found = huggingface_hub.snapshot_download(
            identifier,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=list(_NOT_THESE),
        )
    except Exception as why:  # httpx's errors, too, and those that the library adds
        raise _refusal(label, why, errors, _cached(identifier)) from why
    return Path(found)


def _refusal(label: str, why: Exception, errors: Any, cached: list[str]) -> EdgetuneError:
    """The error of this package for one of huggingface_hub's, which wrap each other."""
    first: BaseException = why
    while isinstance(first, errors.LocalEntryNotFoundError) and first.__cause__ is not None:
        first = first.__cause__
    if isinstance(first, errors.GatedRepoError):
        msg = f"{label}: gated, and the hub does not let this machine have it"
        return MissingError(msg, "accept its terms on its page, then log in: hf auth login")
    if isinstance(first, errors.RevisionNotFoundError):
        msg = f"{label}: the hub has no such revision of it"
        return InputRefusedError(msg, "name one of its branches, tags or commits")
    if isinstance(first, errors.RepositoryNotFoundError):
        msg = f"{label}: no folder here, and the hub has no such repository, or a private one"
        return InputRefusedError(msg, "check the name; for a private one: hf auth login")
    if isinstance(why, errors.IncompleteSnapshotError):
        msg = f"{label}: the hub's cache holds it in part, and the hub is out of reach"
        return MissingError(msg, _CHECK)
    if isinstance(first, errors.HfHubHTTPError):
        msg = f"{label}: the hub answers with an error ({_line(first)})"
        return MissingError(msg, "try again later; what is in the cache needs no hub")
    if isinstance(why, errors.LocalEntryNotFoundError):
        if cached:
            msg = f"{label}: the hub's cache has {', '.join(cached)} of it, not this one, and the "
            return MissingError(f"{msg}hub is out of reach", _CHECK)
        msg = f"{label}: no folder here, not in the hub's cache, and the hub is out of reach"
        return MissingError(msg, _CHECK)
    if isinstance(why, errors.HFValidationError):
        return InputRefusedError(f"{label}: no hub id ({_line(why)})", "like owner/name")
    return MissingError(f"{label}: the hub is out of reach ({_line(why)})", _CHECK)


def _cached(identifier: str) -> list[str]:
    """A repository's revisions in the hub's cache: its branches and tags, else its commits."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{identifier.replace('/', '--')}"
    refs = folder / "refs"
    names = sorted(p.relative_to(refs).as_posix() for p in refs.rglob("*") if p.is_file())
    return names or sorted(p.name for p in (folder / "snapshots").glob("*"))


def _line(why: BaseException) -> str:
    return (str(why).strip().splitlines() or [type(why).__name__])[0][:200]
