"""A PEFT adapter folder: its config and its tensors, and whether they fit a base by their names
and shapes. Standard library only.

Tensor names, as PEFT writes them: `base_model.model.<module>.<part>`, the adapter's name left out;
parts are `lora_A.weight`, `lora_B.weight`, `lora_B.bias`, `lora_embedding_A`, `lora_embedding_B`,
`lora_magnitude_vector` (DoRA). Any other name is a whole tensor that takes the base's place:
`modules_to_save`, biases, `base_layer.weight` of targeted embeddings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.checkpoint import adapter_fields
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder, safe_file
from edgetune.checkpoint.foreign import is_renamed_safetensors
from edgetune.checkpoint.header import FLOAT_DTYPES, TensorEntry, read_header
from edgetune.checkpoint.patterns import pattern_problem
from edgetune.errors import INPUT_REFUSED, InputRefusedError, Problem
from edgetune.files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector)"
)
_MOST_STATE_BYTES = 1 << 16
_QUANT_STATE = ".quant_state.bitsandbytes__"
_WRONG_BASE = "name the base that this adapter was trained on"
PICKLE_HINT = (
    "--allow-pickle reads it in a confined process; or, where you trust it, load it with PEFT and "
    "write safetensors with save_pretrained"
)


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter. `files` are the relative paths of what matters to a build."""

    path: Path
    config: dict[str, Any]
    peft_type: str
    use_dora: bool
    rank: int
    alpha: float
    base_name: str | None
    tensors: dict[str, TensorEntry]
    files: tuple[str, ...]


def read_adapter(path: Path, *, pickled: bool = False) -> Adapter:
    """Read an adapter folder: config and header, not the weights. With `pickled` an adapter that
    has only a pickle is read too, without its tensors.

    Raises InputRefusedError: no adapter folder, a config that is no PEFT config, pickle weights
    only, a damaged file, a path that leads out of the folder. What the adapter asks for is judged
    later, by `refusal_of` and `fit_problems`.
    """
    config = _read_config(path)
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str):
        msg = f"{path / CONFIG_FILE}: no peft_type"
        raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    wrong = adapter_fields.type_problem(config) if peft_type == "LORA" else None
    if wrong:
        msg = f"{path / CONFIG_FILE}: {wrong}"
        raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    weights = PICKLE_FILE if is_pickled(path) else WEIGHTS_FILE
    if weights == PICKLE_FILE and is_renamed_safetensors(path / PICKLE_FILE):
        msg = f"{path / PICKLE_FILE}: a safetensors file under another name"
        raise InputRefusedError(msg, f"call it {WEIGHTS_FILE}")
    if weights == PICKLE_FILE and not pickled:
        raise InputRefusedError(pickle_problem(path), PICKLE_HINT)
    return Adapter(
        path=path,
        config=config,
        peft_type=peft_type,
        use_dora=bool(config.get("use_dora")),
        rank=_number(config, "r"),
        alpha=_number(config, "lora_alpha"),
        base_name=config.get("base_model_name_or_path") or None,
        tensors={} if weights == PICKLE_FILE else read_header(safe_file(path, weights)),
        files=(CONFIG_FILE, weights),
    )


def is_pickled(path: Path) -> bool:
    """True for an adapter folder whose weights are a pickle and nothing else."""
    return not (path / WEIGHTS_FILE).exists() and (path / PICKLE_FILE).exists()


def pickle_problem(path: Path) -> str:
    """What is wrong with such a folder, as a sentence."""
    return f"{path}: only {PICKLE_FILE}, a pickle file, which can run code when read"


def refusal_of(adapter: Adapter) -> str | None:
    """Why this adapter cannot be merged onto any base, by name; None when it can."""
    reason = adapter_fields.refusal(adapter.config)
    return reason[0] if reason else None


def fit_problems(adapter: Adapter, base: CheckpointFolder) -> list[Problem]:
    """Why this adapter cannot be merged onto this base, judged from config and headers."""
    if reason := adapter_fields.refusal(adapter.config):
        return [Problem(f"{adapter.path}: {reason[0]}", reason[1], INPUT_REFUSED)]
    if not adapter.tensors:
        message = f"{adapter.path / WEIGHTS_FILE}: no tensors"
        return [Problem(message, "save the adapter again after training", INPUT_REFUSED)]
    if adapter.config.get("ensure_weight_tying") and base.tied and touches_embeddings(adapter):
        message = (
            f"{adapter.path}: ensure_weight_tying: adapters tied between embedding and head are "
            "not supported yet"
        )
        return [Problem(message, "train with ensure_weight_tying false", INPUT_REFUSED)]
    modules = {name.rpartition(".")[0] for name in base.tensors}
    if problem := pattern_problem(adapter.config, modules):
        message = f"{adapter.path / CONFIG_FILE}: {problem}"
        return [Problem(message, "save the adapter again from training", INPUT_REFUSED)]
    strangers, misfits = [], []
    for name, entry in sorted(adapter.tensors.items()):
        if entry.dtype not in FLOAT_DTYPES:
            misfits.append(f"{name} has dtype {entry.dtype}")
            continue
        expected = _expected_shape(name, adapter, base)
        if expected is None:
            strangers.append(name)
        elif expected != entry.shape:
            misfits.append(f"{name} is {list(entry.shape)}, this base takes {list(expected)}")
    return [
        Problem(f"{adapter.path / WEIGHTS_FILE}: {text}", _WRONG_BASE, INPUT_REFUSED)
        for text in [
            *_some("not a module of this base", strangers),
            *_some("does not fit", misfits),
        ]
    ]


def touches_embeddings(adapter: Adapter) -> bool:
    """True when the adapter changes the input or output embedding."""
    modules = {EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")}
    changed = (split_name(name) for name in adapter.tensors)
    return any(
        (module if part else module.removesuffix(".weight")) in modules for module, part in changed
    )


def split_name(name: str) -> tuple[str, str]:
    """(module, part) of a LoRA tensor, or (name in the base, "") of a whole one.

    >>> split_name("base_model.model.lm_head.lora_A.weight")
    ('lm_head', 'lora_A.weight')
    >>> split_name("base_model.model.model.embed_tokens.base_layer.weight")
    ('model.embed_tokens.weight', '')
    """
    bare = name.removeprefix(PREFIX)
    if match := _PART.fullmatch(bare):
        return match["module"], match["part"]
    head, _, tail = bare.rpartition(".")
    return f"{head.removesuffix('.base_layer')}.{tail}", ""


def base_shape(base: CheckpointFolder, name: str) -> tuple[int, ...] | None:
    """The shape of a base's tensor as the model has it: unpacked if 4-bit, the tied head's too."""
    if base.tied and name in (EMBEDDING, HEAD):
        name = base.tied_source
    for kind in ("nf4", "fp4"):
        if state := base.tensors.get(f"{name}{_QUANT_STATE}{kind}"):
            return _packed_shape(base, state)
    entry = base.tensors.get(name)
    return entry.shape if entry else None


def _number(config: dict[str, Any], field: str) -> Any:
    """A LoRA number; 8 is PEFT's default for both."""
    if config.get("peft_type") != "LORA":
        return 0
    return 8 if config.get(field) is None else config[field]


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG_FILE).exists():
        msg = f"{path}: no {CONFIG_FILE}; an adapter is a folder that PEFT's save_pretrained wrote"
        inner = sorted(p.parent.name for p in path.glob(f"*/{CONFIG_FILE}"))
        hint = f"did you mean {path / inner[0]}?" if inner else "check the path"
        raise InputRefusedError(msg, hint)
    config = read_json(safe_file(path, CONFIG_FILE))
    if not isinstance(config, dict):
        msg = f"{path / CONFIG_FILE}: not a JSON object"
        raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    return config


def _expected_shape(name: str, adapter: Adapter, base: CheckpointFolder) -> tuple[int, ...] | None:
    """The shape that a tensor must have on this base; None when the base has no such module."""
    if not name.startswith(PREFIX):
        return None
    module, part = split_name(name)
    if not part:
        return base_shape(base, module)
    weight = base_shape(base, f"{module}.weight")
    if weight is None or len(weight) != 2:
        return None
    rows, columns = weight
    rank = _pattern_value(adapter, module)
    if part.startswith("lora_embedding"):  # an embedding's rows are its input
        return (rank, rows) if part.endswith("_A") else (columns, rank)
    if part == "lora_magnitude_vector":
        embedding = f"{PREFIX}{module}.lora_embedding_A" in adapter.tensors
        return (columns if embedding else rows,)
    return {"lora_A.weight": (rank, columns), "lora_B.weight": (rows, rank)}.get(part, (rows,))


def _pattern_value(adapter: Adapter, module: str) -> int:
    """The rank of one module: the first pattern that matches the end of its name, else `r`.

    As PEFT's `get_pattern_key`, which matches `(.*\\.)?(<pattern>)$`.
    """
    for pattern, rank in (adapter.config.get("rank_pattern") or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return int(rank)
        except re.error:
            continue
    return adapter.rank


def _packed_shape(base: CheckpointFolder, state: TensorEntry) -> tuple[int, ...] | None:
    """The shape that bitsandbytes keeps as JSON bytes beside each packed 4-bit weight."""
    if state.nbytes > _MOST_STATE_BYTES:
        raise _no_state(base, state)
    descriptor = os.open(base.path / state.file, os.O_RDONLY)
    try:
        text = os.pread(descriptor, state.nbytes, state.begin)
    finally:
        os.close(descriptor)
    try:
        return tuple(int(size) for size in json.loads(text)["shape"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise _no_state(base, state) from None


def _no_state(base: CheckpointFolder, state: TensorEntry) -> InputRefusedError:
    msg = f"{base.path / state.file}: tensor {state.name!r} is no quantization state"
    return InputRefusedError(msg, "copy the file again from where it came from")


def _some(what: str, names: list[str]) -> Iterator[str]:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        yield f"{what}: {names[0]}{more}"
