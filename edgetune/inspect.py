"""What a path is: a model, an adapter, a package, an output folder; and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.checkpoint.adapter import is_pickled, pickle_problem, read_adapter
from edgetune.checkpoint.adapter_fields import VARIANTS
from edgetune.checkpoint.families import unsupported_reason
from edgetune.checkpoint.fit import refusal_of
from edgetune.checkpoint.folder import CheckpointFolder, read_checkpoint
from edgetune.checkpoint.header import FLOAT_DTYPES, TensorEntry
from edgetune.checkpoint.peft_types import label_of
from edgetune.errors import InputRefusedError
from edgetune.optimize.forms.decoder import export_problem
from edgetune.optimize.schemes import SCHEMES
from edgetune.runtime.describe import describe_package
from edgetune.step import is_ours

# Of LoRA, what is worth knowing beside its rank.
_OPTIONS = (
    "ensure_weight_tying",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "trainable_token_indices",
)


def describe(path: Path) -> dict[str, Any]:
    """Facts of a path, `kind` first and `problems` last. Raises InputRefusedError for none."""
    if not path.exists():
        msg = f"{path}: no such file or folder"
        raise InputRefusedError(msg, "check the path")
    if (path / "SHA256SUMS").is_file() or (path / "edgetune.lock").is_file():
        return describe_package(path)
    if (path / "adapter_config.json").is_file():
        return _adapter(path)
    if (path / "config.json").is_file():
        return _checkpoint(path)
    if path.is_dir() and is_ours(path) and any(path.iterdir()):
        packages = sorted(p.parent.name for p in path.glob("*/edgetune.lock"))
        steps = sorted(p.parent.name for p in path.glob("steps/*/step.json"))
        return {"kind": "output folder", "packages": packages, "steps": steps, "problems": []}
    msg = f"{path}: neither a model, an adapter, a package nor an output folder"
    hint = "a model has config.json, an adapter adapter_config.json, a package SHA256SUMS"
    raise InputRefusedError(msg, hint)


def _adapter(path: Path) -> dict[str, Any]:
    adapter = read_adapter(path, pickled=True)
    reason = refusal_of(adapter)
    pickled = is_pickled(path)
    problems = [reason] if reason else []
    if pickled:
        problems.append(f"{pickle_problem(path)}; `build --allow-pickle` reads it, confined")
    kind = "DoRA" if adapter.use_dora else label_of(adapter.peft_type)
    options = [option for option in (*VARIANTS, *_OPTIONS) if adapter.config.get(option)]
    learned = [t.shape for n, t in adapter.tensors.items() if _is_own(n) and _is_number(t)]
    return {
        "kind": "adapter",
        "name": path.resolve().name,
        "type": kind,
        "peft_type": adapter.peft_type,
        "options": options or None,
        "rank": adapter.rank or None,
        "alpha": adapter.alpha or None,
        "rank_pattern": adapter.config.get("rank_pattern") or None,
        "alpha_pattern": adapter.config.get("alpha_pattern") or None,
        "use_rslora": adapter.config.get("use_rslora"),
        "target_modules": adapter.config.get("target_modules"),
        "modules_to_save": adapter.config.get("modules_to_save"),
        "base": adapter.base_name,
        "weights": adapter.files[1],
        "tensors": None if pickled else len(adapter.tensors),
        "parameters": None if pickled else sum(map(_count, learned)),
        "note": "PEFT does not store how the base was quantized in training: say --trained-as",
        "problems": problems,
    }


def _is_own(name: str) -> bool:
    """True for what the adapter learned: no second copy, no weight of the base saved along."""
    whole_base = name.endswith((".base_layer.weight", ".original_module.weight"))
    return not whole_base and name.split(".")[-2:-1] != ["modules_to_save"]


def _is_number(entry: TensorEntry) -> bool:
    """True for learned numbers; some types store positions, which are integers."""
    return entry.dtype in FLOAT_DTYPES


def _checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    reason = unsupported_reason(checkpoint.config) or export_problem(checkpoint.config)
    return {
        "kind": "model",
        "name": path.resolve().name,
        "model_type": checkpoint.model_type,
        "architectures": checkpoint.config.get("architectures"),
        "hidden_size": checkpoint.config.get("hidden_size"),
        "layers": checkpoint.config.get("num_hidden_layers"),
        "vocabulary": checkpoint.config.get("vocab_size"),
        "tied_embeddings": checkpoint.tied,
        "quantization": _quantization(checkpoint),
        "dtypes": sorted({t.dtype for t in checkpoint.tensors.values()}),
        "parameters": sum(_count(t.shape) for t in checkpoint.tensors.values()),
        "weight_bytes": checkpoint.weight_bytes,
        "fits": f"text-generation; CPU schemes {_cpu_schemes()}" if not reason else None,
        "problems": [reason] if reason else [],
    }


def _cpu_schemes() -> str:
    return ", ".join(n for n, row in SCHEMES.items() if "CPUExecutionProvider" in row.providers)


def _quantization(checkpoint: CheckpointFolder) -> str | None:
    settings = checkpoint.quantization
    if not settings:
        return None
    kind = settings.get("bnb_4bit_quant_type") if settings.get("load_in_4bit") else None
    return str(kind or settings.get("quant_method") or "unknown")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
