"""/proc/cpuinfo as Linux writes it on 64-bit Arm: what libraries read a core's design from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.errors import MissingError


def cpuinfo_text(processor: Mapping[str, Any], cores: int = 1) -> str:
    """The file's text for a processor as `ask_processor` found it.

    Fields of MIDR_EL1: implementer 31:24, variant 23:20, architecture 19:16 (Linux prints 8),
    part 15:4, revision 3:0 (Arm Architecture Reference Manual, D19.2). Raises MissingError when
    the processor did not say what it is.
    """
    flags, main_id = processor.get("instruction_sets"), processor.get("main_id")
    if not flags or main_id is None:
        msg = f"the emulated processor does not say what it is: {dict(processor)}"
        raise MissingError(msg, "another version of QEMU may; 7.2 does")
    rows = (
        ("BogoMIPS\t", "100.00"),
        ("Features\t", " ".join(flags)),
        ("CPU implementer\t", f"0x{main_id >> 24 & 0xFF:02x}"),
        ("CPU architecture", "8"),
        ("CPU variant\t", f"0x{main_id >> 20 & 0xF:x}"),
        ("CPU part\t", f"0x{main_id >> 4 & 0xFFF:03x}"),
        ("CPU revision\t", f"{main_id & 0xF}"),
    )
    core = "".join(f"{name}: {value}\n" for name, value in rows)
    return "".join(f"processor\t: {number}\n{core}\n" for number in range(cores))
