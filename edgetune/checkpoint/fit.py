"""Whether an adapter fits a base, by names and shapes alone. Standard library only.

The merge proves the rest: PEFT says which tensors it would have saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgetune.checkpoint import adapter_fields
from edgetune.checkpoint.adapter import (
    CONFIG_FILE,
    PREFIX,
    TRAINED_TOKENS,
    WEIGHTS_FILE,
    Adapter,
    base_shape,
    is_beside,
    split_name,
)
from edgetune.checkpoint.experts import place_of
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder
from edgetune.checkpoint.header import FLOAT_DTYPES
from edgetune.checkpoint.patterns import pattern_problem
from edgetune.checkpoint.reshaped import reshaped, shape_problems
from edgetune.errors import INPUT_REFUSED, Problem

_WRONG_BASE = "name the base that this adapter was trained on"


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
    if problems := list(shape_problems(adapter, base)):
        return problems
    if single := _of_one_expert(adapter, base):
        message = (
            f"{adapter.path / WEIGHTS_FILE}: {single} adapts one expert's own matrix: it was "
            "trained with transformers 4, whose experts were modules"
        )
        hint = "load it with PEFT 0.21 over transformers 5 and save it again: that converts it"
        return [Problem(message, hint, INPUT_REFUSED)]
    strangers, misfits = [], []
    base = reshaped(base, [adapter])
    plain = adapter_fields.is_plain_lora(adapter.config)
    modules = _module_names(base)
    if problem := pattern_problem(adapter.config, modules):
        message = f"{adapter.path / CONFIG_FILE}: {problem}"
        return [Problem(message, "save the adapter again from training", INPUT_REFUSED)]
    for name, entry in sorted(adapter.tensors.items()):
        if not plain:
            if not _belongs(name, modules):
                strangers.append(name)
            continue
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


def _expected_shape(name: str, adapter: Adapter, base: CheckpointFolder) -> tuple[int, ...] | None:
    """The shape that a tensor must have on this base; None when the base has no such module."""
    if not name.startswith(PREFIX):
        return None
    module, part = split_name(name)
    if not part:
        return _shape(base, module)
    if is_beside(part):
        return _shape(base, f"{module}.{part.partition('.')[2]}")
    weight = _shape(base, f"{module}.weight")
    if weight is None or len(weight) != 2:
        return None
    rows, columns = weight
    if part == TRAINED_TOKENS:
        return _tokens(adapter, module, base.tied), columns
    rank = _pattern_value(adapter, module)
    if part.startswith("lora_embedding"):  # an embedding's rows are its input
        return (rank, rows) if part.endswith("_A") else (columns, rank)
    if part == "lora_magnitude_vector":
        embedding = f"{PREFIX}{module}.lora_embedding_A" in adapter.tensors
        return (columns if embedding else rows,)
    return {"lora_A.weight": (rank, columns), "lora_B.weight": (rows, rank)}.get(part, (rows,))


def _of_one_expert(adapter: Adapter, base: CheckpointFolder) -> str | None:
    """The first tensor that belongs to a single expert, which the model has no module for."""
    for name in sorted(adapter.tensors):
        weight = f"{split_name(name)[0]}.weight"
        if place_of(base.model_type, weight).expert is not None:
            return name
    return None


def _module_names(base: CheckpointFolder) -> frozenset[str]:
    """The modules that hold the base's tensors, as the model names them."""
    parameters = (place_of(base.model_type, name).parameter for name in base.tensors)
    return frozenset(parameter.rpartition(".")[0] for parameter in parameters) | {
        name.removesuffix(".weight") for name in (EMBEDDING, HEAD)
    }


def _belongs(name: str, modules: frozenset[str]) -> bool:
    """True when a tensor's name lies in a module of the base, or is shared by the whole adapter."""
    if not name.startswith(PREFIX):
        return name.startswith("base_model.")
    parts = name.removeprefix(PREFIX).split(".")
    return any(".".join(parts[:n]) in modules for n in range(len(parts) - 1, 0, -1))


def _shape(base: CheckpointFolder, name: str) -> tuple[int, ...] | None:
    """As `base_shape`, with the rows of a resized vocabulary."""
    shape, rows = base_shape(base, name), base.config.get("vocab_size")
    if name in (EMBEDDING, HEAD) and shape and isinstance(rows, int):
        return (rows, *shape[1:])
    return shape


def _tokens(adapter: Adapter, module: str, tied: bool) -> int:
    """How many rows trainable_token_indices trains in a module; a tied head has its embedding's."""
    indices = adapter.config.get("trainable_token_indices") or []
    if isinstance(indices, dict):
        ends = [v for k, v in indices.items() if module == k or module.endswith(f".{k}")]
        indices = next(iter(ends or (indices.values() if tied else [])), [])
    return len(indices)


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


def _some(what: str, names: list[str]) -> Iterator[str]:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        yield f"{what}: {names[0]}{more}"
