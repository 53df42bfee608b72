"""What a package's `self_test/run.pyz` does: the package against the reference it carries, on the
machine it runs on.

The same measurement and the same judge as `edgetune validate`, from a zip file of edgetune's own
modules (`package/self_test_app.py`): Python, numpy, onnxruntime and onnxruntime-genai are enough.
Exits with the verdict's code; the report is read by `edgetune gate`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgetune.console import print_error, print_json, print_note, print_result
from edgetune.errors import (
    GATE_FAILED,
    INCONCLUSIVE,
    INTERRUPTED,
    PASS,
    EdgetuneError,
    MissingError,
    UsageError,
)
from edgetune.files import dump_json, write_text
from edgetune.host import THIS_MACHINE, probe_host
from edgetune.report.long_context_words import long_context_lines
from edgetune.report.plain import as_report
from edgetune.report.verdict import Judged, judge
from edgetune.report.words import headline, what_is_unclear, what_was_lost
from edgetune.runtime.manifest import Manifest, choose_variant, read_manifest
from edgetune.runtime.oldest import oldest_for, too_old
from edgetune.runtime.session import session_threads
from edgetune.validate.here import own_device, told_here

CODES = {"pass": PASS, "fail": GATE_FAILED, "inconclusive": INCONCLUSIVE}
_LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-genai")


def main(arguments: Sequence[str], app: Path) -> int:
    """Check the package that `app` lies in; returns the exit code. Only here errors become one."""
    for stream in (sys.stdout, sys.stderr):
        # A device's terminal may know less than Unicode.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    options = _parser().parse_args(arguments)
    try:
        return _check(options, app)
    except KeyboardInterrupt:
        print_note("interrupted; nothing was written")
        return INTERRUPTED
    except EdgetuneError as why:
        print_error(why)
        return why.exit_code
    except OSError as why:
        hint = "check the path, its rights and the disk's free space"
        print_error(MissingError(str(why), hint))
        return MissingError.exit_code
    except MemoryError:
        print_error(MissingError("out of memory", "close other programs"))
        return MissingError.exit_code
    except Exception as why:
        # Python's own status for it, 1, would read as a failed gate.
        traceback.print_exc()
        print_error(EdgetuneError(f"the self-test itself failed: {type(why).__name__}: {why}"))
        return EdgetuneError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.pyz",
        description="Checks the package that this program lies in against the trained model's "
        "answers, which it carries. Exits with 0: pass, 1: fail, 5: inconclusive, "
        "2: usage, 3: this machine lacks something, 4: the package was changed.",
    )
    parser.add_argument("package", nargs="?", type=Path, help="another package's folder")
    parser.add_argument("-d", "--device", help="the device of the package that this machine is")
    parser.add_argument("--variant", help="the variant to run, when not the device's own")
    parser.add_argument("--threads", type=int, help="how many; the device's own by default")
    parser.add_argument(
        "-o", "--out", type=Path, help="where the report goes; PACKAGE@DEVICE.json by default"
    )
    parser.add_argument("--json", action="store_true", help="the report on standard output")
    return parser


def _check(options: argparse.Namespace, app: Path) -> int:
    package = options.package or app.resolve().parent.parent
    tell = _teller()
    tell("checking the package's files")
    manifest = read_manifest(package)
    _check_libraries(oldest_for(manifest.lock))
    host = probe_host()
    device = options.device or own_device(manifest, host)
    out = options.out or Path(f"{manifest.name}@{device}.json")
    _check_place(out, package)
    # Needs numpy.
    from edgetune.report.make import finish_on_device
    from edgetune.validate.job import Job
    from edgetune.validate.validate import measure_sections

    known = None if device == THIS_MACHINE and device not in manifest.devices else device
    job = Job(
        identifier=f"{manifest.name}@{device}",
        device=device,
        here=device == THIS_MACHINE or bool(told_here(manifest, device, host)),
        threads=_threads(options.threads, manifest, device),
        variant=choose_variant(manifest, options.variant, known),
        evidence={"built": True},
    )
    report = finish_on_device(measure_sections(manifest, job, tell)[0])
    write_text(out, dump_json(report))
    if options.json:
        print_json(report)
    else:
        for line in summary(report):
            print_result(line)
    print_note(f"report   {out}")
    return CODES[str(report["verdict"])]


def summary(report: Mapping[str, Any]) -> Iterator[str]:
    """The checks, one a line, then the verdict, why, and on what it was measured."""
    view = as_report(report)
    judgement = judge(view)
    yield str(report["identifier"])
    for check in judgement.checks:
        yield f"{check.verdict:<13} {check.name:<22} {_figures(check)}"
    yield f"verdict  {headline(judgement)}"
    yield from (f"lost     {text}" for text in what_was_lost(view, judgement))
    yield from (f"unclear  {text}" for text in what_is_unclear(view, judgement))
    yield from (f"long     {text}" for text in long_context_lines(view))
    fidelity = report["fidelity"]
    yield (
        f"measured {fidelity['items']} items, {fidelity['positions']} positions "
        f"({fidelity['kl_kind']}), on a {fidelity['measured_on']}"
    )
    if (candidate := report["latency"]["candidate"]) is not None:
        yield (
            f"latency  {candidate['answer_ms']:.1f} ms an answer, "
            f"{candidate['decode_tokens_per_s']:.1f} tokens/s, on {report['latency']['threads']} "
            "threads"
        )


def _figures(check: Judged) -> str:
    figure = check.figure
    if figure is None:
        return check.reason or "no reason was given"
    sign = "≥" if check.bad == "below" else "≤"
    text = f"{figure.value:.6g}"
    if figure.low != figure.high:
        text += f" [{figure.low:.6g}, {figure.high:.6g}]"
    return f"{text}, limit {sign} {check.limit:g}"


def _check_libraries(oldest: Mapping[str, str]) -> None:
    """Raise MissingError when a library is not there, does not load or is too old."""
    python = Path(sys.executable).name or "python3"
    found: dict[str, str | None] = {"python": platform.python_version()}
    install = f"{python} -m pip install " + " ".join(
        f"'{name}>={oldest[name]}'" for name in _LIBRARIES
    )
    missing = [name for name in _LIBRARIES if find_spec(name.replace("-", "_")) is None]
    if missing:
        msg = f"{' and '.join(missing)} not installed for {sys.executable}"
        raise MissingError(msg, install)
    for name in _LIBRARIES:
        try:
            module = importlib.import_module(name.replace("-", "_"))
        except Exception as why:
            words = (str(why).splitlines() or [type(why).__name__])[0]
            msg = f"{name} does not load with {sys.executable}: {words[:300]}"
            raise MissingError(msg, install) from why
        found[name] = getattr(module, "__version__", None)
    if old := too_old(found, oldest):
        msg = f"too old for this package: {', '.join(old)}"
        raise MissingError(msg, install)


def _check_place(out: Path, package: Path) -> None:
    if out.resolve().is_relative_to(package.resolve()):
        msg = f"{out}: inside the package, which a check must leave as it is"
        raise UsageError(msg, "name a file elsewhere with -o, or work in another folder")
    folder = next(place for place in out.absolute().parents if place.exists())
    if out.is_dir() or not os.access(folder, os.W_OK):
        msg = f"{out}: the report cannot be written there"
        raise MissingError(msg, "name a file elsewhere with -o")


def _threads(asked: int | None, manifest: Manifest, device: str) -> int:
    if asked is not None and not 1 <= asked <= 1024:
        msg = f"--threads {asked}: a number from 1 to 1024"
        raise UsageError(msg, "leave it out for the device's own")
    return asked or session_threads(manifest, device)


def _teller() -> Callable[[str], None]:
    """Tells one line a stage: `item 1 of 240` stands for all of them."""
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        stage = re.split(r"\d", text, maxsplit=1)[0]
        if stage != last:
            last = stage
            print_note(text)

    return tell
