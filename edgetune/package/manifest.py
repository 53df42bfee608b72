"""`manifest.json`: an ONNX Runtime model package, spec 1.0, one inline component.

ONNX Runtime refuses unknown keys, so what edgetune adds lies in `additional_metadata`. It accepts
what onnxruntime-genai then cannot load (no or several components, a variant without a folder), so
that is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.errors import InputRefusedError, StepFailedError

# onnxruntime-genai takes exactly one component and calls it so.
COMPONENT = "model"


def make_manifest(
    name: str,
    variants: Sequence[Mapping[str, str]],
    devices: Mapping[str, str],
    version: str,
    requires: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest of a package. `variants`: name, provider, device_kind; `devices`: {device:
    variant}; `version`: edgetune's; `requires`: {library: the oldest that opens it}."""
    return {
        "schema_version": "1.0",
        "package_name": name,
        "layout": "portable",
        "components": {
            COMPONENT: {
                "variants": {
                    variant["name"]: {
                        "variant_directory": variant["name"],
                        "ep": variant["provider"],
                        "device": variant["device_kind"],
                    }
                    for variant in sorted(variants, key=lambda v: v["name"])
                }
            }
        },
        "additional_metadata": {
            "edgetune": {
                "version": version,
                "requires": {name: f">={oldest}" for name, oldest in requires.items()},
                "devices": {device: {"variant": devices[device]} for device in sorted(devices)},
            }
        },
    }


def open_strictly(package: Path) -> dict[str, Any]:
    """Open a package with ONNX Runtime, unknown fields, links and outside paths refused.

    Returns {variant: {"ep", "device"}}. Raises InputRefusedError with what ONNX Runtime says, or
    when the package is not one that onnxruntime-genai takes.
    """
    import onnxruntime

    try:
        opened = onnxruntime.ModelPackage.open(
            str(package),
            allow_external_paths=False,
            follow_symlinks=False,
            strict_unknown_fields=True,
        )
        info = opened.get_info()
        opened.close()
    except (ValueError, OSError, RuntimeError) as why:
        msg = f"{package}: onnxruntime refuses the package: {why}"
        raise InputRefusedError(msg, "build the package again") from why
    names = [component["name"] for component in info["components"]]
    if names != [COMPONENT]:
        msg = f"{package}: its components are {names}, onnxruntime-genai takes one, {COMPONENT!r}"
        raise InputRefusedError(msg, "build the package again")
    found: dict[str, Any] = {}
    for variant in info["components"][0]["variants"]:
        name, folder = variant["name"], variant["variant_directory"]
        if not folder or Path(folder).resolve() != (package / name).resolve():
            msg = f"{package}: the variant {name!r} has no folder of its name"
            raise InputRefusedError(msg, "build the package again")
        found[name] = {"ep": variant["ep"], "device": variant["device"]}
    return found


def check_reopened(package: Path, variants: Sequence[Mapping[str, str]]) -> None:
    """Prove that what was written is what ONNX Runtime reads. Raises StepFailedError."""
    wanted = {v["name"]: {"ep": v["provider"], "device": v["device_kind"]} for v in variants}
    found = open_strictly(package)
    if found != wanted:
        msg = f"{package}: re-opened, its variants are {found}, written were {wanted}"
        raise StepFailedError(msg, "report it with the step's log")
