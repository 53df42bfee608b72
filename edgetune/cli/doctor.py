"""`edgetune doctor`: is this environment fit, and what to do where it is not."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Versions, providers, disk, memory; each fault with its remedy.")
@click.option(
    "--make",
    type=click.Choice(["aarch64"]),
    help="Make a worker environment: aarch64 runs Arm programs under QEMU.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Copy the environment from a folder made elsewhere.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def doctor(make: str | None, source: Path | None, as_json: bool) -> int:
    """Check this environment: versions, providers, disk, memory, emulators, known-bad pairs."""
    from edgetune.console import print_json, print_table
    from edgetune.doctor import check_environment
    from edgetune.errors import UsageError

    if source is not None and make is None:
        msg = f"--from {source}: of which environment?"
        raise UsageError(msg, "edgetune doctor --make aarch64 --from FOLDER")
    if make is not None:
        return _make(source, as_json)
    checks = check_environment()
    if as_json:
        print_json({"checks": [c.as_json() for c in checks]})
    else:
        rows = [(c.name, c.found, c.state, c.remedy) for c in checks]
        print_table("", ("check", "found", "state", "what to do"), rows)
    return 3 if any(c.state == "fault" for c in checks) else 0


def _make(source: Path | None, as_json: bool) -> int:
    from edgetune.console import print_json, print_note, step_progress
    from edgetune.doctor import make_environment

    with step_progress("aarch64") as progress:
        made = make_environment(source, progress.update)
        progress.stop(f"{made['bytes'] / 1e6:.0f} MB in {made['path']}")
    if as_json:
        print_json(made)
    else:
        print_note("try it: edgetune validate PACKAGE --emulate raspberry-pi-5")
    return 0
