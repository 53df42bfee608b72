"""Which instruction sets the processor under this process shows, asked of it and not of the system.

Under an emulator `/proc/cpuinfo` is the host's, or a file that was put there; what counts is what
a library's own detection finds: the CPUID instruction on x86-64, the auxiliary vector on Arm.
Standard library only. Names are Linux's (/proc/cpuinfo).
"""

from __future__ import annotations

import ctypes
import json
import mmap
import platform
import sys
from collections.abc import Mapping

# (leaf, subleaf, register: eax ebx ecx edx) → {bit: flag}. Intel SDM volume 2A, CPUID.
_X86_64: Mapping[tuple[int, int, int], Mapping[int, str]] = {
    (1, 0, 2): {9: "ssse3", 12: "fma", 19: "sse4_1", 20: "sse4_2", 28: "avx", 29: "f16c"},
    (7, 0, 1): {3: "bmi1", 5: "avx2", 8: "bmi2", 16: "avx512f", 17: "avx512dq", 30: "avx512bw",
                31: "avx512vl"},
    (7, 0, 2): {11: "avx512_vnni"},
    (7, 0, 3): {22: "amx_bf16", 24: "amx_tile", 25: "amx_int8"},
    (7, 1, 0): {4: "avx_vnni", 5: "avx512_bf16"},
}  # fmt: skip
# push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid; mov [r8 + 0, 4, 8, 12], eax, ebx, ecx,
# edx; pop rbx; ret
_CPUID = bytes.fromhex("53 89f8 89f1 4989d0 0fa2 418900 41895804 41894808 4189500c 5b c3")

# mrs x0, midr_el1; ret (Linux lets every process read it where it shows the flag cpuid)
_READ_MIDR = bytes.fromhex("000038d5 c0035fd6")
# Bits of AT_HWCAP and AT_HWCAP2: Linux, arch/arm64/include/uapi/asm/hwcap.h.
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAP = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp"),
    *("asimdhp", "cpuid", "asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4"),
    *("asimddp", "sha512", "sve", "asimdfhm", "dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb"),
    *("paca", "pacg"),
)
_HWCAP2 = (
    *("dcpodp", "sve2", "sveaes", "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2"),
    *("frint", "svei8mm", "svef32mm", "svef64mm", "svebf16", "i8mm", "bf16", "dgh", "rng", "bti"),
)


def instruction_sets() -> tuple[str, ...] | None:
    """The flags found, in the tables' order; None where they cannot be read (another processor, a
    system that allows no code in memory)."""
    machine = platform.machine()
    try:
        if machine in ("x86_64", "AMD64"):
            return _from_cpuid()
        if machine in ("aarch64", "arm64"):
            return _from_auxiliary_vector()
    except (OSError, AttributeError, ValueError):
        pass
    return None


def _from_cpuid() -> tuple[str, ...]:
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    try:
        code.write(_CPUID)
        start = ctypes.c_char.from_buffer(code)
        words = ctypes.c_uint32 * 4
        kind = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(words))
        cpuid = kind(ctypes.addressof(start))

        def ask(leaf: int, subleaf: int) -> list[int]:
            found = words()
            cpuid(leaf, subleaf, ctypes.byref(found))
            return list(found)

        highest = ask(0, 0)[0]
        flags = [
            flag
            for (leaf, subleaf, register), bits in _X86_64.items()
            if leaf <= highest
            for bit, flag in bits.items()
            if ask(leaf, subleaf)[register] >> bit & 1
        ]
        del start
    finally:
        code.close()
    return tuple(flags)


def _from_auxiliary_vector() -> tuple[str, ...]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    getauxval.argtypes = [ctypes.c_ulong]
    return tuple(
        flag
        for kind, names in ((_AT_HWCAP, _HWCAP), (_AT_HWCAP2, _HWCAP2))
        for bit, flag in enumerate(names)
        if getauxval(kind) >> bit & 1
    )


def main_id() -> int | None:
    """MIDR_EL1 of an Arm processor (implementer, variant, part, revision); null elsewhere."""
    if platform.machine() not in ("aarch64", "arm64"):
        return None
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    try:
        code.write(_READ_MIDR)
        start = ctypes.c_char.from_buffer(code)
        value = int(ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))())
        del start
    finally:
        code.close()
    return value


if __name__ == "__main__":
    found = {"machine": platform.machine(), "instruction_sets": instruction_sets()}
    sys.stdout.write(json.dumps({**found, "main_id": main_id()}) + "\n")
