"""Step 3: merged checkpoint -> one complete flat onnxruntime-genai folder, through Olive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgetune.checkpoint.families import ties_embeddings
from edgetune.child import run_child
from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.files import read_json
from edgetune.optimize.forms import decoder
from edgetune.optimize.schemes import find_scheme
from edgetune.optimize.widths import widths_from_json

# Made by the reference's own code, in a process of its own.
_CALIBRATE = "edgetune.reference.calibration:calibration_step"
_CALIBRATION = ".calibration"


def optimize_step(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Build the graph that `arguments["workflow"]` describes, and prove what it is.

    arguments: checkpoint (folder), base (what the fine-tune started from: {path, trained_as}, or
    null), workflow (of `make_workflow`), scheme (name), widths, kv_cache (float32 or int8),
    provider, calibration (what `reference.calibration` is given beside the checkpoint, for a graph
    that is made with it; else null). Facts: graph_bytes (model.onnx and its data), read_back,
    survival, open_peak_rss_mb (of the process that opened it), generation_set,
    generation_not_carried. Raises InputRefusedError for a checkpoint that the builder would get
    wrong, StepFailedError when Olive yields no model, an option was ignored, or the model does not
    run.
    """
    checkpoint = Path(arguments["checkpoint"])
    scheme = find_scheme(arguments["scheme"])
    widths = widths_from_json(arguments["widths"])
    config = read_json(checkpoint / "config.json")
    refused = decoder.export_problem(config)
    if refused:
        msg = f"{checkpoint}: {refused}"
        raise InputRefusedError(msg, "choose another base; this one cannot be exported faithfully")
    progress("starting Olive")
    from edgetune.checkpoint.folder import read_checkpoint
    from edgetune.optimize.genai_folder import complete_folder
    from edgetune.optimize.olive import run_workflow
    from edgetune.optimize.read_back import read_back
    from edgetune.optimize.survival import survival

    calibrated = _calibrate(arguments, out, progress)
    run_workflow(arguments["workflow"], checkpoint, out, progress, out / _CALIBRATION)
    shutil.rmtree(out / _CALIBRATION, ignore_errors=True)  # none of it ships
    facts = complete_folder(out, checkpoint)
    progress("reading the graph back")
    kv_cache = arguments.get("kv_cache", "float32")
    wanted = decoder.make_expectations(scheme, widths, ties_embeddings(config), kv_cache)
    modules = {name.removesuffix(".weight") for name in read_checkpoint(checkpoint).tensors}
    found = read_back(out, wanted, widths, modules)
    log = out.parent / "logs" / f"{out.name.removeprefix('.tmp-')}-open.log"
    with ThreadPoolExecutor(1) as pool:
        # In a process of its own: what opening takes is memory of the device, not of the export.
        given: dict[str, Any] = {"log": log, "progress": lambda _: None}
        opened = pool.submit(run_child, f"{__name__}:try_model", {}, out, **given)
        left = survival(out, checkpoint, arguments["base"], widths, progress)
        progress("opening it with onnxruntime-genai")
        _, peak = opened.result()
    graph = [out / "model.onnx", out / "model.onnx.data"]
    return {
        "graph_bytes": sum(p.stat().st_size for p in graph),
        "read_back": found,
        "survival": left,
        "calibration": calibrated,
        "open_peak_rss_mb": peak,
        **facts,
    }


def _calibrate(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any] | None:
    """Have the calibration's token ids made: {source, texts, tokens}; null where the scheme needs
    none."""
    wanted = arguments.get("calibration")
    if wanted is None:
        return None
    folder = out / _CALIBRATION
    folder.mkdir()
    given = {**wanted, "checkpoint": arguments["checkpoint"]}
    log = out.parent / "logs" / f"{out.name.removeprefix('.tmp-')}-calibration.log"
    facts, _ = run_child(_CALIBRATE, given, folder, log=log, progress=progress)
    return facts


def try_model(
    arguments: Mapping[str, Any],  # noqa: ARG001
    folder: Path,
    progress: Callable[[str], None],  # noqa: ARG001
) -> None:
    """Open a flat genai folder and run one token through it.

    Raises StepFailedError when it does not open or its logits are not finite.
    """
    import numpy as np
    import onnxruntime_genai as og

    try:
        model = og.Model(str(folder))
        og.Tokenizer(model)
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=try_length(config))
        generator = og.Generator(model, parameters)
        token = config["model"]["bos_token_id"]
        generator.append_tokens(np.array([[token]], dtype=np.int32))
        logits = np.asarray(generator.get_logits())
    except Exception as why:
        msg = f"onnxruntime-genai does not run what the builder wrote: {why}"
        raise StepFailedError(msg, "report it with the step's log") from why
    if not np.isfinite(logits).all():
        msg = "the graph's logits are not finite numbers"
        raise StepFailedError(msg, "look for NaN or Inf in the checkpoint's weights")


def try_length(config: Mapping[str, Any]) -> int:
    """Tokens to make room for: few, but not less than a sliding window, which its kernel needs."""
    decoder_config = config["model"]["decoder"]
    window = int(decoder_config.get("sliding_window", {}).get("window_size", 0))
    return max(16, window)
