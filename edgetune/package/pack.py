"""Step 5: graphs, reference and lock -> the folder that ships.

Everything is copied (ONNX Runtime and onnx refuse linked weights), re-opened as a device opens it,
and only then listed in SHA256SUMS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune import __version__
from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checksums import (
    SELF_TEST_APP,
    SHA256SUMS,
    self_test_digest,
    verify_checksums,
    write_checksums,
)
from edgetune.errors import StepFailedError
from edgetune.files import (
    copy_file,
    digest_of_json,
    digests_of_folder,
    dump_json,
    list_files,
    write_text,
)
from edgetune.package.lock import make_lock
from edgetune.package.manifest import check_reopened, make_manifest
from edgetune.package.self_test_app import make_self_test_app
from edgetune.package.weights import describe_weights
from edgetune.runtime.oldest import oldest_for

_GRAPH_FILES = ("model.onnx", "model.onnx.data")
# The step store's own notes in a step's folder.
_STORE_FILES = ("step.json",)


def package_step(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Write the package into `out`; `reports/` comes later, from the validation.

    arguments: name, variants, devices, self_test (the reference's folder that ships), checkpoint,
    base_checkpoint, lock, tolerances, budgets, require_on_device, merge (parity and tensor counts,
    or null), trained_parameters (null: all of them).
    Facts: package_digest (SHA-256 of SHA256SUMS), package_bytes,
    graph_bytes {variant: bytes}. Raises InputRefusedError or StepFailedError when what was written
    does not open again.
    """
    variants: Sequence[Mapping[str, str]] = arguments["variants"]
    devices = {name: entry["variant"] for name, entry in arguments["devices"].items()}
    _check_devices(devices, [variant["name"] for variant in variants])
    for variant in variants:
        progress(f"copying {variant['name']}")
        _copy_folder(Path(variant["graph"]), out / variant["name"])
    _copy_folder(Path(arguments["self_test"]), out / "self_test")
    graph_bytes = {v["name"]: _graph_bytes(out / v["name"]) for v in variants}
    weights = {v["name"]: describe_weights(out / v["name"]) for v in variants}
    limits = make_limits(arguments, graph_bytes, weights)
    write_text(out / "self_test" / "limits.json", dump_json(limits))
    (out / "self_test" / SELF_TEST_APP).write_bytes(make_self_test_app())
    _write_devices(arguments["devices"], out / "devices")
    manifest = make_manifest(
        arguments["name"], variants, devices, __version__, oldest_for(arguments["lock"])
    )
    write_text(out / "manifest.json", dump_json(manifest))
    lock = make_lock(
        arguments["lock"], arguments["name"], _describe_variants(out, variants),
        self_test_digest(out / "self_test"),
    )  # fmt: skip
    write_text(out / "edgetune.lock", dump_json(lock))
    progress("opening the package again")
    check_reopened(out, variants)
    for variant in variants:
        _check_opens(out / variant["name"])
    digest = write_checksums(out)
    if verify_checksums(out) != digest:
        msg = f"{out}: {SHA256SUMS} changed while it was written"
        raise StepFailedError(msg, "build into a folder that nobody else writes to")
    size = sum((out / name).stat().st_size for name in list_files(out))
    return {"package_digest": digest, "package_bytes": size, "graph_bytes": graph_bytes}


def make_limits(
    arguments: Mapping[str, Any],
    graph_bytes: Mapping[str, int],
    weights: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """`self_test/limits.json`: what the package is judged by, and the sizes it is compared with
    (`base_bytes`: the weight files of the base; `weights`: of each variant, by module)."""
    return {
        "tolerances": arguments["tolerances"],
        "budgets": arguments["budgets"],
        "require_on_device": arguments["require_on_device"],
        "base_bytes": read_checkpoint(Path(arguments["base_checkpoint"])).weight_bytes,
        "graph_bytes": dict(sorted(graph_bytes.items())),
        "weights": dict(sorted(weights.items())),
        "merge": arguments.get("merge"),
        "parameters": _count_parameters(arguments),
    }


def _count_parameters(arguments: Mapping[str, Any]) -> dict[str, int]:
    """`trained`: by the adapters, or all in a full fine-tune; `total`: the merged model's."""
    tensors = read_checkpoint(Path(arguments["checkpoint"])).tensors.values()
    total = sum(math.prod(entry.shape) for entry in tensors)
    trained = arguments.get("trained_parameters")
    return {"trained": total if trained is None else trained, "total": total}


def _check_devices(devices: Mapping[str, str], packed: Sequence[str]) -> None:
    for device, variant in devices.items():
        if variant not in packed:
            msg = f"the device {device} is to run {variant}, which is not packed"
            raise StepFailedError(msg, "report it with the step's log")


def _copy_folder(source: Path, target: Path) -> None:
    for name in list_files(source):
        if name not in _STORE_FILES:
            copy_file(source / name, target / name)


def _graph_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in _GRAPH_FILES)


def _write_devices(devices: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """One file a device with settings; a machine that is probed when it runs has none."""
    for name, entry in sorted(devices.items()):
        if entry["session"] is not None:
            kept = {key: entry.get(key) for key in ("variant", "session", "machine")}
            write_text(folder / f"{name}.json", dump_json(kept))


def _describe_variants(
    out: Path, variants: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    return {
        variant["name"]: {
            "provider": variant["provider"],
            "device_kind": variant["device_kind"],
            "digest": digest_of_json(digests_of_folder(out / variant["name"])),
        }
        for variant in variants
    }


def _check_opens(folder: Path) -> None:
    """Open a variant as a device does, by its path. Raises StepFailedError."""
    import onnxruntime_genai as og

    try:
        og.Tokenizer(og.Model(str(folder)))
    except Exception as why:
        msg = f"{folder}: onnxruntime-genai does not open the variant that was packed: {why}"
        raise StepFailedError(msg, "report it with the step's log") from why
