"""`edgetune doctor`: is this environment fit, and what to do where it is not."""

from __future__ import annotations

import click


@click.command(short_help="Versions, providers, disk, memory; each fault with its remedy.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def doctor(as_json: bool) -> int:
    """Check this environment: versions, providers, disk, memory, known-bad pairs."""
    from edgetune.console import print_json, print_table
    from edgetune.doctor import check_environment

    checks = check_environment()
    if as_json:
        print_json({"checks": [c.as_json() for c in checks]})
    else:
        rows = [(c.name, c.found, c.state, c.remedy) for c in checks]
        print_table("", ("check", "found", "state", "what to do"), rows)
    return 3 if any(c.state == "fault" for c in checks) else 0
