"""The command line: one file a command; the only importer of click.

Commands import what they need when they run: `edgetune --help` loads no heavy library.
"""

from __future__ import annotations

import click

import edgetune as package
from edgetune.cli.build import build
from edgetune.cli.devices import devices
from edgetune.cli.doctor import doctor
from edgetune.cli.gate import gate
from edgetune.cli.inspect import inspect
from edgetune.cli.recipes import recipes
from edgetune.cli.report import report
from edgetune.cli.run import run
from edgetune.cli.search import search
from edgetune.cli.validate import validate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package.__version__, prog_name="edgetune")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def edgetune(debug: bool) -> None:
    """Take a fine-tuned model to the device, and prove that the fine-tune survived.

    \b
    edgetune build demo                         the built-in demo, end to end
    edgetune build -m MODEL -a ADAPTER -o OUT   your own base model and adapter
    edgetune validate OUT/<recipe>              check a package, here or on a device
    """
    del debug  # read by __main__, which shows errors


for command in (build, search, inspect, validate, gate, report, run, devices, recipes, doctor):
    edgetune.add_command(command)
