"""`edgetune` and `python -m edgetune`: runs the command, turns errors into messages and codes."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from edgetune.errors import INTERRUPTED, USAGE, EdgetuneError


def main() -> None:
    """Run the command line and exit with the code of what happened."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code. Only this function turns errors into codes."""
    import click

    from edgetune.cli import edgetune

    debug = "--debug" in arguments
    try:
        result = edgetune.main(args=arguments, prog_name="edgetune", standalone_mode=False)
    except click.exceptions.Exit as why:
        return why.exit_code
    except click.ClickException as why:
        why.show()
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        print_interrupted()
        return INTERRUPTED
    except EdgetuneError as why:
        if debug:
            raise
        from edgetune.console import print_error

        print_error(why)
        return why.exit_code
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        sys.stderr.close()
        return 0
    except OSError as why:
        if debug:
            raise
        from edgetune.console import print_error
        from edgetune.errors import MissingError

        hint = "check the path, its rights and the disk's free space; --debug shows where"
        print_error(MissingError(str(why), hint))
        return MissingError.exit_code
    except Exception as why:
        if debug:
            raise
        from edgetune.console import print_error

        said = f"{type(why).__name__}: {why}"
        print_error(EdgetuneError(f"edgetune itself failed: {said}", "run it again with --debug"))
        return EdgetuneError.exit_code
    return result if isinstance(result, int) else 0


def print_interrupted() -> None:
    """Say that a Ctrl-C ended the command, and that finished steps are kept."""
    from edgetune.console import print_note

    print_note("interrupted; finished steps are kept, the same command goes on from there")


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
