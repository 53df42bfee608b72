"""A package opened for running.

The thread count is always given: left alone, onnxruntime-genai may take one thread. Settings go
through `og.Config.overlay`, which changes the opened model and no file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import InputRefusedError, MissingError
from edgetune.files import read_json
from edgetune.host import usable_cores
from edgetune.runtime.manifest import Manifest, Variant, choose_variant, read_manifest


@dataclass(frozen=True)
class OpenPackage:
    """A variant of a package, loaded. `model` and `tokenizer` are onnxruntime-genai's."""

    manifest: Manifest
    variant: Variant
    device: str | None
    threads: int
    # Execution provider that took the decoder, in ONNX Runtime's spelling.
    provider: str
    # genai_config.json of the variant.
    config: Mapping[str, Any]
    model: Any
    tokenizer: Any
    load_s: float

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits."""
        return int(self.config["model"]["vocab_size"])

    @property
    def context_length(self) -> int:
        """How many tokens, prompt and answer together, the model takes."""
        return int(self.config["model"]["context_length"])

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        ids = self.config["model"]["eos_token_id"]
        return tuple(ids) if isinstance(ids, list) else (int(ids),)


def open_package(
    path: Path,
    variant: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    verify: bool = True,
) -> OpenPackage:
    """Open a package's variant with the session settings of a device, or a number of threads.

    Threads: those given, else the device's, else all processors this process may use; never more
    than those. Raises InputRefusedError (no package, tampered, a graph that does not open),
    UsageError (unknown variant or device), MissingError (the provider is not in this environment).
    """
    manifest = read_manifest(path, verify)
    return open_variant(manifest, choose_variant(manifest, variant, device), device, threads)


def open_variant(
    manifest: Manifest, variant: Variant, device: str | None = None, threads: int | None = None
) -> OpenPackage:
    """Open one variant of a package whose manifest was read. Raises as `open_package` does."""
    import onnxruntime_genai as og

    # Telemetry of its own begins with 0.15, and so does the switch.
    if hasattr(og, "disable_telemetry_events"):
        og.disable_telemetry_events()
    _need_provider(variant.provider)
    config = _read_config(variant)
    count = threads or session_threads(manifest, device)
    settings = {"session_options": {"intra_op_num_threads": count}}
    started = time.perf_counter()
    try:
        own = og.Config(str(variant.folder))
        own.overlay(json.dumps({"model": {"decoder": settings}}))
        model = og.Model(own)
        tokenizer = og.Tokenizer(model)
    except RuntimeError as why:
        msg = f"{variant.folder}: onnxruntime-genai cannot open it: {_first_line(why)}"
        hint = "edgetune.lock names the versions it was built with; `edgetune doctor` yours"
        raise InputRefusedError(msg, hint) from why
    return OpenPackage(
        manifest=manifest,
        variant=variant,
        device=device,
        threads=count,
        provider=_provider_in_place(variant, str(model.device_type)),
        config=config,
        model=model,
        tokenizer=tokenizer,
        load_s=time.perf_counter() - started,
    )


def session_threads(manifest: Manifest, device: str | None) -> int:
    """The device's thread count where the package names one, else all usable processors."""
    entry = manifest.devices.get(device or "", {})
    session = entry.get("session") or {}
    cores = usable_cores()
    return min(int(session.get("intra_op_num_threads") or cores), cores)


def _read_config(variant: Variant) -> Mapping[str, Any]:
    where = variant.folder / "genai_config.json"
    config = read_json(where)
    model = config.get("model") if isinstance(config, dict) else None
    needed = ("vocab_size", "context_length", "eos_token_id", "decoder")
    lacking = [key for key in needed if not isinstance(model, dict) or key not in model]
    if lacking:
        msg = f"{where}: `model` has no {', '.join(lacking)}"
        raise InputRefusedError(msg, "build the package again")
    assert isinstance(config, dict)
    return config


def _need_provider(provider: str) -> None:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider not in available:
        msg = f"{provider} is not in this environment's onnxruntime (it has {', '.join(available)})"
        raise MissingError(msg, "install the onnxruntime build of that provider")


def _provider_in_place(variant: Variant, device_type: str) -> str:
    """The provider that runs the decoder; refused when it is not the one asked for.

    onnxruntime-genai falls back to the CPU without a word where a provider does not load.
    """
    on_cpu = device_type.upper() == "CPU"
    if on_cpu != (variant.provider == "CPUExecutionProvider"):
        msg = f"variant {variant.name}: asked for {variant.provider}, runs on {device_type}"
        raise MissingError(msg, "install the provider's libraries and drivers")
    return variant.provider


def _first_line(why: BaseException) -> str:
    return (str(why).strip().splitlines() or [type(why).__name__])[0][:300]
