"""Runs Olive, and is the only module that imports it.

Olive's own pass over onnxruntime-genai's builder fails with today's builder, so the project has one
of its own. What Olive logs goes to the step's log; a run that yields no model is an error here,
where Olive itself returns as if all were well.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Before the import, or a heartbeat with a device identifier is queued: Olive reads its own switch
# only after that, and skips the heartbeat only where it finds a CI variable. Nothing here needs
# the Hub: the checkpoint is a folder.
os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("CI", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from olive.model import HfModelHandler, ONNXModelHandler
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.workflows import run

from edgetune.checkpoint.families import SUPPORTED
from edgetune.errors import EdgetuneError, MissingError, StepFailedError
from edgetune.files import copy_file, is_out_of_space, read_json
from edgetune.optimize.corrections import corrected, settle_config
from edgetune.optimize.rounding import Rounder, all_rounders
from edgetune.optimize.widths import FLOAT, Widths, widths_from_json
from edgetune.optimize.workflow import (
    CACHE,
    CACHE_SCALES,
    CALIBRATION,
    CHECKPOINT,
    CODES,
    OUT,
    fill_workflow,
)

_GRAPH = "model.onnx"
_DATA = "model.onnx.data"
# What Olive adds to the folder about its own run.
_OLIVE_FILES = ("model_config.json", "footprint.json", "output_footprint.json", "run_history.txt")
_LAST_WORDS = 3
# What is logged here is shown while Olive runs.
_PROGRESS = logging.getLogger("olive.edgetune.progress")


def _option(kind: type, *, required: bool = False) -> PassConfigParam:
    return PassConfigParam(type_=kind, required=required, default_value=None)


class LayerwiseGptq(Pass):  # type: ignore[misc]
    """GPTQ, a layer at a time (`optimize.gptq`): the model stays as it is, the codes of its
    modules go into a folder for the builder."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:  # noqa: ARG003
        files = {name: _option(str, required=True) for name in ("calibration", "codes")}
        return {**files, "widths": _option(dict, required=True)}

    def _run_for_config(
        self,
        model: HfModelHandler,
        config: Any,
        output_model_path: str,  # noqa: ARG002
    ) -> HfModelHandler:
        from edgetune.optimize.gptq.quantize import quantize_layers

        quantize_layers(
            Path(model.model_name_or_path),
            read_json(Path(config.calibration)),
            widths_from_json(config.widths),
            Path(config.codes),
            _PROGRESS.info,
        )
        return model


class GenaiBuilder(Pass):  # type: ignore[misc]
    """onnxruntime-genai's builder as an Olive pass: Hugging Face folder -> genai folder."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:  # noqa: ARG003
        return {
            "precision": _option(str, required=True),
            "execution_provider": _option(str, required=True),
            "prune_lm_head": _option(bool),
            "algo_config": _option(str),
            "block_size": _option(int),
            "is_symmetric": _option(bool),
            "accuracy_level": _option(int),
            # Of the modules, as `Widths.as_json`; none in a float graph. No text: Olive looks
            # every text up as a path, and one of more than 255 letters fails as a file's name.
            "widths": _option(dict),
            # The folder of a pass that rounded modules by calibration text.
            "codes": _option(str),
            # An 8-bit key-value cache, and the file of its scales.
            "kv_cache_quant_scheme": _option(str),
            "kv_cache_scale_file": _option(str),
        }

    def _run_for_config(
        self, model: HfModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        options = {key: value for key, value in config.model_dump().items() if value is not None}
        precision = options.pop("precision")
        provider = options.pop("execution_provider")
        found = options.pop("widths", None)
        widths = widths_from_json(found) if found else Widths(FLOAT)
        codes = options.pop("codes", None)
        rounders = all_rounders(Path(codes) if codes else None)
        folder = Path(output_model_path)
        folder.mkdir(parents=True, exist_ok=True)
        _build(model.model_name_or_path, folder, precision, provider, options, widths, rounders)
        side_files = [p for p in folder.iterdir() if p.name not in (_GRAPH, _DATA)]
        return ONNXModelHandler(
            folder,
            onnx_file_name=_GRAPH,
            model_attributes={"additional_files": sorted(str(p) for p in side_files)},
        )


def _build(
    checkpoint: str,
    folder: Path,
    precision: str,
    provider: str,
    options: Mapping[str, Any],
    widths: Widths,
    rounders: Mapping[str, Rounder],
) -> None:
    """Run onnxruntime-genai's builder in this process."""
    from onnxruntime_genai.models import builder

    cache = str(folder.parent / "builder-cache")
    words = [f"{key}={_as_builder_reads(value)}" for key, value in sorted(options.items())]
    parsed = builder.parse_extra_options(
        checkpoint, checkpoint, str(folder), precision, provider, cache, words
    )
    config = parsed["hf_details"]["hf_config"]
    tables = settle_config(config, SUPPORTED[config.model_type].architecture)
    with corrected(builder, tables, widths, rounders):
        builder.create_model(
            checkpoint, checkpoint, str(folder), precision, provider, cache, **parsed
        )


def _as_builder_reads(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Listener(logging.Handler):
    """Passes Olive's progress on and remembers its last words."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self.words: deque[str] = deque(maxlen=_LAST_WORDS)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Running pass "):
            self._progress(f"Olive: {text}")
        if record.name == _PROGRESS.name:
            self._progress(text)
        if record.levelno >= logging.WARNING:
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                self.errors.append(error)
                text = f"{text} ({type(error).__name__}: {error})"
            self.words.append(text)


def run_workflow(
    workflow: Mapping[str, Any],
    checkpoint: Path,
    out: Path,
    progress: Callable[[str], None],
    calibration: Path | None = None,
) -> None:
    """Run a workflow of `optimize.workflow` over a checkpoint; the genai folder is put into `out`.
    `calibration`: the folder of calibration.json (token ids) and cache_scales.json, for a workflow
    that asks for them.

    Olive's cache and temporary files lie in a folder inside `out`, which is removed. All files are
    copies: Olive links some, and onnx refuses linked external data. Raises StepFailedError with
    Olive's last words when it yields no model, MissingError when disk or memory ran out, and what
    a pass of the project raised.
    """
    work = out / ".olive"
    result = work / "result"
    (work / "tmp").mkdir(parents=True)
    folders = {
        CHECKPOINT: str(checkpoint),
        CACHE: str(work / "cache"),
        OUT: str(result),
        CODES: str(work / "codes"),
        CALIBRATION: str(calibration / "calibration.json") if calibration else "",
        CACHE_SCALES: str(calibration / "cache_scales.json") if calibration else "",
    }
    listener = _Listener(progress)
    logger = logging.getLogger("olive")
    logger.addHandler(listener)
    temporary = tempfile.tempdir
    try:
        output = _run(fill_workflow(workflow, folders), work / "tmp", listener)
        if output is None or not output.has_output_model():
            raise _no_model(listener, out)
        _take(result, out, listener)
    finally:
        logger.removeHandler(listener)
        tempfile.tempdir = temporary  # Olive leaves its own there
        shutil.rmtree(work, ignore_errors=True)


def _run(workflow: dict[str, Any], temporary: Path, listener: _Listener) -> Any:
    """Olive's output; None when it raised, which it does for some kinds of error only."""
    try:
        return run(workflow, package_config=package_config(), tempdir=str(temporary))
    except Exception as why:
        listener.errors.append(why)
        listener.words.append(f"{type(why).__name__}: {why}")
        return None


def _take(result: Path, out: Path, listener: _Listener) -> None:
    missing = [name for name in (_GRAPH, _DATA) if not (result / name).is_file()]
    if missing:
        listener.words.append(f"no {' and no '.join(missing)} in its output folder")
        raise _no_model(listener, out)
    for path in sorted(result.iterdir()):
        if path.name not in _OLIVE_FILES:
            copy_file(path, out / path.name)


def _no_model(listener: _Listener, out: Path) -> EdgetuneError:
    for error in listener.errors:
        if isinstance(error, EdgetuneError):
            return error
    if any(is_out_of_space(error) for error in listener.errors):
        hint = "free some space and run the same command again; finished steps are kept"
        return MissingError(f"{out.parent}: the disk is full", hint)
    if any(isinstance(error, MemoryError) for error in listener.errors):
        hint = "close other programs, or build on a machine with more memory"
        return MissingError("out of memory while exporting", hint)
    said = "; ".join(listener.words) or "nothing"
    # The step's folder is named after its key, and so is its log.
    log = out.parent / "logs" / f"{out.name.removeprefix('.tmp-')}.log"
    where = f"the log is {log}" if log.exists() else "the step's log has all that Olive wrote"
    return StepFailedError(f"Olive gave no model; its last words: {said}", where)


def package_config() -> dict[str, Any]:
    """Olive's list of passes, with the project's own beside them."""
    config = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text("utf-8"))
    everything = {
        f"supported_{what}": ["*"] for what in ("providers", "accelerators", "precisions")
    }
    for own in (LayerwiseGptq, GenaiBuilder):
        config["passes"][own.__name__] = {
            "module_path": f"{__name__}.{own.__name__}",
            **everything,
            "supported_algorithms": [],
            "supported_quantization_encodings": [],
        }
    assert isinstance(config, dict)
    return config
