"""`edgetune devices`: what a package can be built for."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(short_help="Device profiles: list, show, probe this machine.")
def devices() -> None:
    """Device profiles: list them, show one, probe this machine."""


@devices.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_devices(as_json: bool) -> None:
    """List the shipped profiles and whether this host is one."""
    from edgetune.console import print_json, print_table
    from edgetune.device import find_device, is_here, shipped_devices
    from edgetune.host import probe_host

    host = probe_host()
    known = [*shipped_devices(), find_device("this-machine")]
    if as_json:
        rows = [{**d.model_dump(mode="json"), "here": is_here(d, host)} for d in known]
        print_json({"devices": rows})
        return
    print_table(
        "",
        ("device", "arch", "cores", "memory", "provider", "here", "description"),
        [
            (
                d.name,
                d.arch,
                f"{d.cpu.cores.value:g}",
                f"{d.memory_gb.value:.3g} GB",
                d.providers[0].name.removesuffix("ExecutionProvider"),
                "yes" if is_here(d, host) else "no",
                d.description,
            )
            for d in known
        ],
    )


@devices.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def show_device(name: str, as_json: bool) -> None:
    """Show one profile: every number with its source and status."""
    from edgetune.console import print_json, print_result
    from edgetune.device import Sourced, emulated_as, find_device

    device = find_device(name)
    if as_json:
        print_json(device.model_dump(mode="json"))
        return
    numbers = {
        "cores": device.cpu.cores,
        "frequency_ghz": device.cpu.frequency_ghz,
        "memory_gb": device.memory_gb,
        "memory_bandwidth_gb_s": device.memory_bandwidth_gb_s,
        "int8_gops": device.int8_gops,
        "storage_gb": device.storage_gb,
    }
    print_result(f"{device.name}: {device.description}")
    print_result(f"  {device.arch}, {device.os}, {device.cpu.model}")
    print_result(f"  instruction sets: {' '.join(device.cpu.instruction_sets) or 'none required'}")
    for provider in device.providers:
        print_result(f"  provider: {provider.name} {provider.options or ''}".rstrip())
    print_result(f"  threads: {device.session.intra_op_num_threads}")
    for label, number in numbers.items():
        if isinstance(number, Sourced):
            print_result(f"  {label}: {number.value:g}  [{number.status}] {number.source}")
    print_result(f"  emulated by: {emulated_as(device)}")
    for source in device.sources:
        print_result(f"  source: {source}")


@devices.command("probe")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the profile here.")
@click.option("--quick", is_flag=True, help="Only what the system says of itself, no speeds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def probe_device(out: Path | None, quick: bool, as_json: bool) -> None:
    """Write a profile of this machine: what the system says of itself, and measured speeds."""
    from edgetune.console import print_json, print_note, print_result
    from edgetune.device import this_machine
    from edgetune.errors import UsageError
    from edgetune.files import write_text
    from edgetune.host import probe_host
    from edgetune.probe import measure_speeds, probed_yaml, with_speeds

    if out is not None and (out.suffix != ".yaml" or out.exists()):
        msg = f"{out}: exists already" if out.exists() else f"{out}: a profile ends in .yaml"
        raise UsageError(msg, "name a new file, for example -o my-box.yaml")
    device, speeds = this_machine(probe_host()), None
    if not quick:
        print_note("measuring memory bandwidth and 8-bit products, a few seconds …")
        speeds = measure_speeds(device.session.intra_op_num_threads)
        for name, reason in speeds.reasons.items():
            print_note(f"{name}: not measured: {reason}")
    if as_json:
        print_json(with_speeds(device, speeds).model_dump(mode="json"))
    if out is None:
        if not as_json:
            print_result(probed_yaml(device, "this-machine", speeds), end="")
        return
    write_text(out, probed_yaml(device, out.stem, speeds))
    print_note(f"wrote {out}; build for it with -d {out}")
