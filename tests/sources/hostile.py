"""Pickled weights as an attacker would write them; each tries to leave a mark or to do harm."""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Write = Callable[[Path, Path], Any]  # (file to write, mark that must never appear)
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
END = b"."


def archive(
    file: Path, data: bytes, records: dict[str, bytes] | None = None, *,
    root: str = "archive", compression: int = zipfile.ZIP_STORED,
) -> None:  # fmt: skip
    """A PyTorch archive with this data.pkl; `records` are further entries by their whole name."""
    with zipfile.ZipFile(file, "w", compression) as target:
        target.writestr(f"{root}/data.pkl", data)
        target.writestr(f"{root}/version", "3\n")
        for name, content in (records or {f"{root}/data/0": bytes(64)}).items():
            target.writestr(name, content)


class Call:
    """Unpickled, it is whatever the call returns."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def calls(function: Any, *arguments: Any, protocol: int = 2) -> bytes:
    return pickle.dumps({"weight": Call(function, *arguments)}, protocol=protocol)


def tensor(numel: bytes, shape: bytes, stride: bytes) -> bytes:
    """A dictionary of one tensor over storage 0, from pickle opcodes."""
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE + numel + b"tQK\x00" + shape + stride + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


def number(value: int) -> bytes:
    """A pickled integer of any size."""
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def nested(depth: int) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00w" + b"]" * depth + b"a" * (depth - 1) + b"s."


def laughs(depth: int) -> bytes:
    """A key whose hash takes 2 ** depth steps: each tuple holds the one before it twice."""
    pairs = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(depth))
    return b"\x80\x02}K\x01\x85" + pairs + b"K\x01s."


def legacy(file: Path, mark: Path) -> None:
    import torch

    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=False)


def tar(file: Path, mark: Path) -> None:
    with tarfile.open(file, "w") as target:
        for name in ("sys_info", "pickle", "storages"):
            content = pickle.dumps(Call(os.system, f"touch {mark}"), protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))


def linked(file: Path, mark: Path) -> None:
    link = zipfile.ZipInfo("archive/data/0")
    link.external_attr = 0o120777 << 16
    archive(file, tensor(b"K\x10", b"K\x10\x85", b"K\x01\x85"), {"archive/byteorder": b"little"})
    with zipfile.ZipFile(file, "a") as target:
        target.writestr(link, "../../../mark")


def bomb(file: Path, mark: Path) -> None:
    archive(file, bytes(64 << 20), compression=zipfile.ZIP_DEFLATED)


def lying_sizes(file: Path, mark: Path) -> None:
    """The central directory says that the record holds four billion bytes."""
    archive(file, tensor(b"K\x10", b"K\x10\x85", b"K\x01\x85"))
    data = bytearray(file.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    file.write_bytes(data)


def saved(value: Callable[[], Any]) -> Write:
    def write(file: Path, mark: Path) -> None:
        import torch

        torch.save(value(), file)

    return write


def truncated(file: Path, mark: Path) -> None:
    import torch

    torch.save({"w": torch.ones(4000)}, file)
    file.write_bytes(file.read_bytes()[:-1000])


def _torch() -> Any:
    import torch

    return torch


SOUND = tensor(b"K\x10", b"K\x10\x85", b"K\x01\x85")
# {what it does: (how it is written, words of the refusal)}
HOSTILE: dict[str, tuple[Write, str]] = {
    "runs a program": (
        lambda f, m: archive(f, calls(os.system, f"touch {m}")), "its pickle calls 'posix.system'",
    ),
    "evaluates": (
        lambda f, m: archive(f, calls(eval, f"open({str(m)!r}, 'w')")), "'__builtin__.eval'",
    ),
    "connects": (
        lambda f, m: archive(f, calls(socket.create_connection, ("127.0.0.1", 9))),
        "'socket.create_connection'",
    ),
    "names what it computes": (
        lambda f, m: archive(f, calls(os.system, f"touch {m}", protocol=4)), "uses STACK_GLOBAL",
    ),
    "inst": (
        lambda f, m: archive(f, b"(S'touch " + bytes(m) + b"'\niposix\nsystem\n."), "uses INST",
    ),
    "torch's own loader": (
        lambda f, m: archive(f, calls(_torch().load, str(m))), "'torch.serialization.load'",
    ),
    "a bare pickle": (
        lambda f, m: f.write_bytes(calls(os.system, f"touch {m}")), "no zip archive",
    ),
    "random bytes": (lambda f, m: f.write_bytes(os.urandom(512)), "no zip archive"),
    "empty": (lambda f, m: f.write_bytes(b""), "no zip archive"),
    "magic alone": (lambda f, m: f.write_bytes(b"PK\x03\x04" + bytes(99)), "archive is damaged"),
    "legacy": (legacy, "not a PyTorch file of version 1.6 or later"),
    "legacy tar": (tar, "not a PyTorch file of version 1.6 or later"),
    "truncated": (truncated, "its zip archive is damaged"),
    "cut pickle": (lambda f, m: archive(f, SOUND[:-9]), "its pickle is damaged"),
    "zip bomb": (bomb, "'archive/data.pkl' is compressed or encrypted"),
    "lying sizes": (lying_sizes, "its entries claim more bytes than the file has"),
    "two entries of one name": (
        lambda f, m: archive(f, SOUND, {"archive/data.pkl": SOUND}), "two entries of one name",
    ),
    "path up": (
        lambda f, m: archive(f, SOUND, {"archive/../../mark": b"x"}), "leads out of its archive",
    ),
    "absolute path": (lambda f, m: archive(f, SOUND, {str(m): b"x"}), "leads out of its archive"),
    "link": (linked, "'archive/data/0' is a link"),
    "two roots": (lambda f, m: archive(f, SOUND, {"other/data/0": b"x"}), "no single data.pkl"),
    "deep": (lambda f, m: archive(f, nested(100_000)), "'w' is list, not a tensor"),
    "huge storage": (
        lambda f, m: archive(f, tensor(number(1 << 50), number(1 << 50) + b"\x85", b"K\x01\x85")),
        "torch refuses it",
    ),
    "huge view": (
        lambda f, m: archive(f, tensor(b"K\x10", number(1 << 40) + b"\x85", b"K\x00\x85")),
        "'w' claims more values than are stored",
    ),
    "storage of another size": (
        lambda f, m: archive(f, tensor(b"K\x10", b"K\x63\x85", b"K\x01\x85")), "torch refuses it",
    ),
    "missing storage": (
        lambda f, m: archive(f, SOUND, {"archive/byteorder": b"little"}), "torch refuses it",
    ),
    "no dictionary": (saved(lambda: [_torch().ones(2)]), "holds list, not a dictionary of ten"),
    "a checkpoint of a trainer": (
        saved(lambda: {"state_dict": {"w": _torch().ones(2)}}), "'state_dict' is dict, not",
    ),
    "numbered": (saved(lambda: {1: _torch().ones(2)}), "has a key of type int"),
    "complex": (
        saved(lambda: {"w": _torch().ones(2, dtype=_torch().complex64)}), "ComplexFloatStorage",
    ),
    "sparse": (saved(lambda: {"w": _torch().eye(3).to_sparse()}), "_rebuild_sparse_tensor"),
    "a whole module": (saved(lambda: _torch().nn.Linear(2, 2)), "its pickle calls '"),
}  # fmt: skip
