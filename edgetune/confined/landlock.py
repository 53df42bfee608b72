"""Landlock (Linux 5.13 and later): from here on, this process opens only files below given paths.

Numbers and structures from linux/landlock.h; each version of the interface adds rights, and a
right that the kernel does not know must not be named.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_ASK_VERSION = 1
_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE = 1 << 5, 1 << 8
_TRUNCATE = 1 << 14
# {version: every right on files that it knows}: 2 adds refer, 3 truncate, 5 ioctl on devices.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK = (1 << 0) | (1 << 1)  # bind and connect TCP, from version 4
_SCOPES = (1 << 0) | (1 << 1)  # abstract Unix sockets and signals to others, from version 6
_FILE_RIGHTS = _READ_FILE | _WRITE_FILE | _TRUNCATE


def restrict_files(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Only paths below `readable` can be read, only those below `writable` be written (plain
    files made, changed and removed; no links, no folders); TCP and signals too where the kernel
    can. Holds for this thread and all it starts. False where the kernel has no Landlock.

    The process must have given up new privileges (`confine.confine` does it first).
    """
    system = ctypes.CDLL(None, use_errno=True).syscall
    version = int(system(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION))
    if version < 1:
        return False
    rights = _RIGHTS[max(v for v in _RIGHTS if v <= version)]
    fields = [rights, _NETWORK if version >= 4 else 0, _SCOPES if version >= 6 else 0]
    known = 1 if version < 4 else 2 if version < 6 else 3
    attributes = struct.pack(f"={known}Q", *fields[:known])
    ruleset = int(system(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    if ruleset < 0:
        return False
    try:
        read = _READ_FILE | _READ_DIR
        write = read | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | (_TRUNCATE & rights)
        allowed = [(path, read) for path in readable] + [(path, write) for path in writable]
        if not all(_allow(system, ruleset, path, may & rights) for path, may in allowed):
            return False
        return int(system(_RESTRICT_SELF, ruleset, 0)) == 0
    finally:
        os.close(ruleset)


def _allow(system: ctypes._NamedFuncPointer, ruleset: int, path: Path, rights: int) -> bool:
    """Add one rule; a path that is not there needs none."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        if not path.is_dir():
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, descriptor)
        return int(system(_ADD_RULE, ruleset, _BENEATH, rule, 0)) == 0
    finally:
        os.close(descriptor)
