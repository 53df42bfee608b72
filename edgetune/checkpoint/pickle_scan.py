"""What a PyTorch file asks for, read without unpickling it. Standard library only.

Format (torch.serialization, version 1.6 and later): a zip archive, nothing in it compressed, with
`<root>/data.pkl`, a pickle of protocol 2 in which storages are references, and `<root>/data/<key>`,
their bytes. Older files are refused, and so is a pickle that names anything but what a dictionary
of plain tensors needs.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path, PurePosixPath

from edgetune.errors import InputRefusedError

_MOST_PICKLE_BYTES = 16 << 20  # about 150 bytes a tensor
_MOST_ENTRIES = 200_000
_SAVE_AGAIN = "where you trust it, load it with PyTorch and save its tensors as safetensors"
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
# All that a dictionary of tensors names. REDUCE can call nothing else.
ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {name}Storage" for name in _STORAGES),
    }
)
# Names put together while unpickling cannot be judged beforehand.
_FORBIDDEN = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2",
                        "EXT4", "PERSID"})  # fmt: skip


def scan_pickle(path: Path) -> None:
    """Prove that a file is a plain PyTorch archive that names only what is `ALLOWED`.

    Raises InputRefusedError that says what it is, or names, instead.
    """
    try:
        data = _pickle_of(path)
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _FORBIDDEN:
                raise _refused(path, f"its pickle uses {opcode.name}, which no tensor file needs")
            if opcode.name == "GLOBAL" and argument not in ALLOWED:
                name = str(argument).replace(" ", ".")
                raise _refused(path, f"its pickle calls {name!r}, which no plain tensor needs")
    except (ValueError, IndexError, KeyError, EOFError, RecursionError, OverflowError) as why:
        # what pickletools raises for bytes that are no pickle
        text = " ".join(str(why).split())[:200]
        raise _refused(path, f"its pickle is damaged ({text})") from None


def _pickle_of(path: Path) -> bytes:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"PK\x03\x04":
        raise _refused(path, "not a PyTorch file of version 1.6 or later (no zip archive)")
    try:
        with zipfile.ZipFile(path) as archive:
            entry = _check_entries(path, archive.infolist())
            return archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError, EOFError) as why:
        raise _refused(path, f"its zip archive is damaged ({why})") from None


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """The entry of data.pkl, all entries being plain, apart and no larger than the file."""
    if len(entries) > _MOST_ENTRIES:
        raise _refused(path, f"its archive has {len(entries)} entries")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise _refused(path, "its archive has two entries of one name")
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if entry.filename.startswith("/") or ".." in parts or "\\" in entry.filename:
            raise _refused(path, f"the entry {entry.filename!r} leads out of its archive")
        if (entry.external_attr >> 16) & 0o170000 == 0o120000:
            raise _refused(path, f"the entry {entry.filename!r} is a link")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise _refused(path, f"the entry {entry.filename!r} is compressed or encrypted")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _refused(path, "its entries claim more bytes than the file has")
    roots = {PurePosixPath(name).parts[:1] for name in names}
    found = [entry for entry in entries if PurePosixPath(entry.filename).parts[1:] == ("data.pkl",)]
    if len(roots) != 1 or len(found) != 1:
        raise _refused(path, "its archive holds no single data.pkl")
    if found[0].file_size > _MOST_PICKLE_BYTES:
        raise _refused(path, f"its data.pkl has {found[0].file_size} bytes, more than tensors need")
    return found[0]


def _refused(path: Path, what: str) -> InputRefusedError:
    return InputRefusedError(f"{path}: {what}", _SAVE_AGAIN)
