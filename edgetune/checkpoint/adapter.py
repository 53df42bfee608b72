"""A PEFT adapter folder: its config and its tensors. Standard library only.

Tensor names, as PEFT writes them: `base_model.model.<module>.<part>`, the adapter's name left out;
parts are `lora_A.weight`, `lora_B.weight`, `lora_B.bias`, `lora_embedding_A`, `lora_embedding_B`,
`lora_magnitude_vector` (DoRA), `token_adapter.trainable_tokens_delta`. Any other name is a whole
tensor that takes the base's place: `modules_to_save`, biases, `base_layer.weight` of targeted
embeddings. Types other than LoRA have parts of their own, which only PEFT knows.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.checkpoint import adapter_fields
from edgetune.checkpoint.folder import (
    EMBEDDING,
    HEAD,
    CheckpointFolder,
    list_side_files,
    safe_file,
)
from edgetune.checkpoint.foreign import is_renamed_safetensors
from edgetune.checkpoint.header import TensorEntry, read_header
from edgetune.errors import InputRefusedError
from edgetune.files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
TRAINED_TOKENS = "token_adapter.trainable_tokens_delta"
_PART = re.compile(
    r"(?P<module>.+)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector"
    r"|token_adapter\.trainable_tokens_delta|(modules_to_save|original_module)\.\w+)"
)
_MOST_STATE_BYTES = 1 << 16
_QUANT_STATE = ".quant_state.bitsandbytes__"
PICKLE_HINT = (
    "--allow-pickle reads it in a confined process; or, where you trust it, load it with PEFT and "
    "write safetensors with save_pretrained"
)


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter. `files` are the relative paths of what matters to a build; `tokenizer_files`
    those of them that ship when the adapter changed the vocabulary."""

    path: Path
    config: dict[str, Any]
    peft_type: str
    use_dora: bool
    rank: int
    alpha: float
    base_name: str | None
    tensors: dict[str, TensorEntry]
    files: tuple[str, ...]
    tokenizer_files: tuple[str, ...] = ()


def read_adapter(path: Path, *, pickled: bool = False) -> Adapter:
    """Read an adapter folder: config and header, not the weights. With `pickled` an adapter that
    has only a pickle is read too, without its tensors.

    Raises InputRefusedError: no adapter folder, a config that is no PEFT config, pickle weights
    only, a damaged file, a path that leads out of the folder. What the adapter asks for is judged
    later, in `fit.py`.
    """
    config = _read_config(path)
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str):
        msg = f"{path / CONFIG_FILE}: no peft_type"
        raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    if wrong := adapter_fields.type_problem(config):
        msg = f"{path / CONFIG_FILE}: {wrong}"
        raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    weights = PICKLE_FILE if is_pickled(path) else WEIGHTS_FILE
    if weights == PICKLE_FILE and is_renamed_safetensors(path / PICKLE_FILE):
        msg = f"{path / PICKLE_FILE}: a safetensors file under another name"
        raise InputRefusedError(msg, f"call it {WEIGHTS_FILE}")
    if weights == PICKLE_FILE and not pickled:
        raise InputRefusedError(pickle_problem(path), PICKLE_HINT)
    side_files = [name for name in list_side_files(path) if name != "generation_config.json"]
    tokenizer = tuple(side_files) if "tokenizer_config.json" in side_files else ()
    return Adapter(
        path=path,
        config=config,
        peft_type=peft_type,
        use_dora=bool(config.get("use_dora")),
        rank=_number(config, "r"),
        alpha=_number(config, "lora_alpha", "alpha"),
        base_name=config.get("base_model_name_or_path") or None,
        tensors={} if weights == PICKLE_FILE else read_header(safe_file(path, weights)),
        files=(CONFIG_FILE, weights, *tokenizer),
        tokenizer_files=tokenizer,
    )


def count_trained(adapter: Adapter) -> int:
    """How many numbers the adapter's training could change: what its file holds, without the
    copies of frozen tensors that PEFT saves along with some layers."""
    return sum(
        math.prod(entry.shape)
        for name, entry in adapter.tensors.items()
        if "base_layer" not in name and "original_module" not in name and _QUANT_STATE not in name
    )


def is_pickled(path: Path) -> bool:
    """True for an adapter folder whose weights are a pickle and nothing else."""
    return not (path / WEIGHTS_FILE).exists() and (path / PICKLE_FILE).exists()


def pickle_problem(path: Path) -> str:
    """What is wrong with such a folder, as a sentence."""
    return f"{path}: only {PICKLE_FILE}, a pickle file, which can run code when read"


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
    head = head.removesuffix(".base_layer").removesuffix(".token_adapter")
    return f"{head}.{tail}", ""


def is_beside(part: str) -> bool:
    """True for what PEFT saves beside a saved module when it saves embeddings: the same values
    again (`modules_to_save.weight`), and the base's own that they displace
    (`original_module.weight`)."""
    return part.startswith(("modules_to_save.", "original_module."))


def twin_of(name: str) -> str | None:
    """The tensor that a tensor must be a copy of, where PEFT saves one twice; None for others.

    >>> twin_of("base_model.model.lm_head.modules_to_save.weight")
    'base_model.model.lm_head.weight'
    """
    module, part = split_name(name)
    if part.startswith("modules_to_save."):
        return f"{PREFIX}{module}.{part.removeprefix('modules_to_save.')}"
    head, embedding = (n.removesuffix(".weight") for n in (HEAD, EMBEDDING))
    if module == head and part == TRAINED_TOKENS:
        return f"{PREFIX}{embedding}.{TRAINED_TOKENS}"
    return None


def base_shape(base: CheckpointFolder, name: str) -> tuple[int, ...] | None:
    """The shape of a base's tensor as the model has it: unpacked if 4-bit, the tied head's too."""
    if base.tied and name in (EMBEDDING, HEAD):
        name = base.tied_source
    for kind in ("nf4", "fp4"):
        if state := base.tensors.get(f"{name}{_QUANT_STATE}{kind}"):
            return _packed_shape(base, state)
    entry = base.tensors.get(name)
    return entry.shape if entry else None


def _number(config: dict[str, Any], *fields: str) -> Any:
    """The first of these fields that is a number; 8 is PEFT's default of LoRA, else there is 0."""
    found = (config[f] for f in fields if type(config.get(f)) in (int, float))
    return next(found, 8 if config.get("peft_type") == "LORA" else 0)


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
