"""A QEMU that only says what it knows: a script on a PATH that holds nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

ANSWERS = {
    "x86_64": "x86 Haswell    (alias configured by machine type)\\nx86 base  no features\\n\\n"
    "Recognized CPUID flags:\\n  avx2 fma\\n",
    "aarch64": "Available CPUs:\\n  cortex-a72\\n  cortex-a76\\n  max\\n",
}


def write_qemu(folder: Path) -> None:
    """Both scripts into a new folder."""
    folder.mkdir()
    for arch, help_text in ANSWERS.items():
        script = folder / f"qemu-{arch}"
        version = f"qemu-{arch} version 7.2.22 (Debian 1:7.2)"
        script.write_text(
            "#!/bin/sh\n"
            f'if [ "$1" = --version ]; then echo "{version}"; exit 0; fi\n'
            f"printf '{help_text}'\nexit 1\n"
        )
        script.chmod(0o755)


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the scripts."""
    folder = tmp_path / "bin"
    write_qemu(folder)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("EDGETUNE_ENVIRONMENTS", str(tmp_path / "environments"))
    return folder
