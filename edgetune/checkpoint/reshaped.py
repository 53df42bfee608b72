"""A base in the shape that its adapter gives it: layers repeated, another vocabulary.

The folder stays as it is; what is read from it is seen under other names. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from edgetune.checkpoint.adapter import Adapter, base_shape, split_name
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder
from edgetune.errors import INPUT_REFUSED, Problem

_LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<rest>.+)")


def reshaped(base: CheckpointFolder, adapters: Sequence[Adapter]) -> CheckpointFolder:
    """The base as these adapters had it under them; itself where they leave its shape alone."""
    for adapter in adapters:
        if layers := adapter.config.get("layer_replication"):
            base = _replicated(base, [n for start, stop in layers for n in range(start, stop)])
    rows = {r for adapter in adapters if (r := vocabulary_rows(adapter, base)) is not None}
    if len(rows) == 1:
        base = replace(base, config={**base.config, "vocab_size": rows.pop()})
    return base


def vocabulary_rows(adapter: Adapter, base: CheckpointFolder) -> int | None:
    """The rows of the embeddings that an adapter stores, where the base has another number."""
    own = base_shape(base, EMBEDDING)
    rows = {entry[0] for entry in _stored(adapter).values() if entry and entry[0]}
    others = rows - {own[0]} if own else set()
    return others.pop() if len(others) == 1 and len(rows) == 1 else None


def shape_problems(adapter: Adapter, base: CheckpointFolder) -> Iterator[Problem]:
    """Why the base cannot be given the adapter's shape."""
    count = base.config.get("num_hidden_layers")
    if adapter.config.get("layer_replication") and base.config.get("layer_types"):
        message = (
            f"{adapter.path}: layer_replication: PEFT repeats layers without their types, which "
            f"the config of {base.model_type} lists, and the model does not run"
        )
        yield Problem(message, "train without layer_replication on this base", INPUT_REFUSED)
    for start, stop in adapter.config.get("layer_replication") or ():
        if not (isinstance(count, int) and 0 <= start < stop <= count):
            message = (
                f"{adapter.path}: layer_replication repeats layers {start} to {stop}, and the "
                f"base has {count}"
            )
            yield Problem(message, "name the base that this adapter was trained on", INPUT_REFUSED)
    stored, own = _stored(adapter), base_shape(base, EMBEDDING)
    sizes = {shape[0] for shape in stored.values() if shape}
    if own is None or sizes <= {own[0]}:
        return
    told = " and ".join(f"{name} of {shape[0]} rows" for name, shape in sorted(stored.items()))
    whole = EMBEDDING in stored and (HEAD in stored or base.tied)
    if len(sizes) > 1 or not whole:
        message = (
            f"{adapter.path}: it stores {told}, and the base has {own[0]}: a resized vocabulary "
            "needs both embeddings"
        )
        hint = "save it again with save_pretrained(…, save_embedding_layers=True)"
        yield Problem(message, hint, INPUT_REFUSED)


def _stored(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """The shapes of the embeddings that an adapter stores whole, by their name in the base."""
    found = {split_name(name)[0]: entry.shape for name, entry in adapter.tensors.items()}
    return {name: found[name] for name in (EMBEDDING, HEAD) if name in found}


def _replicated(base: CheckpointFolder, layers: Sequence[int]) -> CheckpointFolder:
    tensors = {name: entry for name, entry in base.tensors.items() if not _LAYER.fullmatch(name)}
    for name, entry in base.tensors.items():
        if match := _LAYER.fullmatch(name):
            for new, old in enumerate(layers):
                if old == int(match["layer"]):
                    tensors[f"model.layers.{new}.{match['rest']}"] = entry
    config: dict[str, Any] = {**base.config, "num_hidden_layers": len(layers)}
    return replace(base, tensors=tensors, config=config)
