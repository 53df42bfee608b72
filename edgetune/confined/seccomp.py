"""A system call filter (seccomp): from here on, no sockets, no programs, no processes.

A list of what is forbidden, and not of what is allowed: torch and Python call much that differs
between versions. It needs no privilege and works in containers where namespaces do not.
Instructions as in linux/filter.h, numbers as in the kernel's tables.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000  # x86-64's second table of numbers, which nothing here needs
_CLONE3 = 435

# {machine: (audit architecture, number of clone, numbers of what is forbidden)}
_MACHINES: dict[str, tuple[int, int, dict[str, int]]] = {
    "x86_64": (0xC000003E, 56, {
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49,
        "listen": 50, "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "kill": 62,
        "ptrace": 101, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166,
        "init_module": 175, "tkill": 200, "kexec_load": 246, "add_key": 248, "request_key": 249,
        "keyctl": 250, "unshare": 272, "accept4": 288, "perf_event_open": 298,
        "open_by_handle_at": 304, "sendmmsg": 307, "setns": 308, "process_vm_readv": 310,
        "process_vm_writev": 311, "finit_module": 313, "memfd_create": 319, "bpf": 321,
        "execveat": 322, "userfaultfd": 323,
    }),
    "aarch64": (0xC00000B7, 220, {
        "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "unshare": 97,
        "kexec_load": 104, "init_module": 105, "ptrace": 117, "kill": 129, "tkill": 130,
        "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202,
        "connect": 203, "sendto": 206, "sendmsg": 211, "add_key": 217, "request_key": 218,
        "keyctl": 219, "execve": 221, "perf_event_open": 241, "accept4": 242,
        "open_by_handle_at": 265, "setns": 268, "sendmmsg": 269, "process_vm_readv": 270,
        "process_vm_writev": 271, "finit_module": 273, "memfd_create": 279, "bpf": 280,
        "execveat": 281, "userfaultfd": 282,
    }),
}  # fmt: skip
# The same number everywhere.
_LATER = {"pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438}


def forbid_calls() -> bool:
    """Install the filter for this thread and all it starts; False where it cannot be had.

    A forbidden call fails with EPERM. Threads can be started, processes cannot. The process must
    have given up new privileges.
    """
    program = make_filter(platform.machine())
    if program is None:
        return False

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    argument = Program(len(program) // 8, program)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return int(prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(argument), 0, 0)) == 0


def make_filter(machine: str) -> bytes | None:
    """The filter's instructions for a machine as `platform.machine` names it; None if unknown."""
    if machine not in _MACHINES:
        return None
    architecture, clone, forbidden = _MACHINES[machine]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    for number in sorted({*forbidden.values(), *_LATER.values()}):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    code += [
        # clone3 hides its flags in memory: without it the C library uses clone.
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_HAS_BITS, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
