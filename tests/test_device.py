from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgetune.device import emulated_as, find_device, is_here, load_device, this_machine
from edgetune.environments.emulator import find_qemu, qemu_cpus
from edgetune.errors import MissingError, UsageError
from edgetune.files import shipped_folder
from edgetune.host import Host, own_peak_rss_mb, probe_host
from edgetune.probe import probed_yaml

HOST = Host("x86_64", "linux", "Intel(R) N100", 4, 8 << 30, ("avx2", "avx_vnni", "fma"))
SHIPPED = sorted(shipped_folder("devices").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_profiles_are_sound_and_sourced(path: Path) -> None:
    device = load_device(path)
    assert device.sources
    for number in (device.cpu.cores, device.memory_gb, device.memory_bandwidth_gb_s):
        assert number is None or number.source


# What `-cpu help` of QEMU 7.2 (Debian 12) lists; all of its x86 names would fill a page.
QEMU_7_2 = {
    "aarch64": {"a64fx", "cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a76",
                "max", "neoverse-n1"},
    "x86_64": {"Nehalem", "Westmere", "SandyBridge", "IvyBridge", "Haswell", "Broadwell",
               "Skylake-Client", "Denverton", "Snowridge", "EPYC", "EPYC-Rome", "EPYC-Milan"},
}  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_profiles_name_a_processor_that_qemu_has_or_say_why_none(path: Path) -> None:
    device = load_device(path)
    if device.emulate is None:
        assert device.not_emulated
        return
    assert not device.not_emulated
    assert device.emulate.cpu.split(",")[0] in QEMU_7_2[device.arch]
    # QEMU drops AVX-512 and AVX-VNNI from a processor without an error.
    assert not any("vnni" in flag or "512" in flag for flag in device.cpu.instruction_sets)
    assert emulated_as(device).startswith(device.emulate.cpu)


def test_the_installed_qemu_knows_them_too() -> None:
    for arch, names in QEMU_7_2.items():
        try:
            program, _ = find_qemu(arch)
        except MissingError as why:
            pytest.skip(why.message)
        assert names <= set(qemu_cpus(program))


def test_classes_of_processors_are_there() -> None:
    sets = [set(load_device(path).cpu.instruction_sets) for path in SHIPPED]
    assert len(SHIPPED) >= 10
    assert any("avx2" in s and not any("vnni" in flag for flag in s) for s in sets)
    assert any("avx_vnni" in s for s in sets)
    assert any("avx512_vnni" in s for s in sets)
    assert any("asimd" in s and "asimddp" not in s for s in sets)
    assert any("sve" in s for s in sets)


def test_a_profile_is_here_only_on_its_own_machine() -> None:
    n100 = find_device("intel-n100")
    assert is_here(n100, HOST)
    assert not is_here(n100, replace(HOST, cpu_model="Intel(R) Core(TM) i7"))
    assert not is_here(n100, replace(HOST, instruction_sets=("avx2", "fma")))
    assert not is_here(find_device("raspberry-pi-5"), HOST)


def test_a_class_of_machines_is_here_where_its_instructions_are() -> None:
    generic = find_device("generic-x86-64")
    assert is_here(generic, HOST)
    assert not is_here(generic, replace(HOST, instruction_sets=("sse4_2",)))
    assert not is_here(generic, replace(HOST, arch="aarch64"))


def test_this_machine_is_here_and_its_written_profile_reads_back(tmp_path: Path) -> None:
    host = probe_host()
    device = this_machine(host)
    assert is_here(device, host)
    path = tmp_path / "my-box.yaml"
    path.write_text(probed_yaml(device, "my-box"), encoding="utf-8")
    again = load_device(path)
    assert again.cpu == device.cpu
    assert is_here(again, host)
    assert find_device(str(path)).name == "my-box"


def test_an_unknown_device_is_told_with_a_likely_one() -> None:
    with pytest.raises(UsageError, match="no device is called 'rasberry-pi-5'") as caught:
        find_device("rasberry-pi-5")
    assert "did you mean 'raspberry-pi-5'?" in caught.value.hint


def test_a_number_without_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("memory_gb: {value: 4, status: datasheet}\n")
    with pytest.raises(UsageError, match=r"x\.yaml:1:\d+: memory_gb\.source is missing"):
        load_device(path)


def test_fingerprints_tell_machines_apart() -> None:
    assert HOST.fingerprint == replace(HOST).fingerprint
    assert HOST.fingerprint != replace(HOST, cores=8).fingerprint
    peak = own_peak_rss_mb()
    assert peak is not None
    assert 5 < peak < 10_000
