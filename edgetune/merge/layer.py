"""One LoRA or DoRA layer merged by PEFT's own `merge`, in blocks of rows, in float32.

The layer lives on the meta device. For each block of rows its tensors are put in, `merge` is
called, and all is taken out again, so that a vocabulary matrix never lies in memory whole. A layer
that still had a meta tensor would merge nothing, without an error: that is checked each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import Parameter

from edgetune.checkpoint.skeleton import quiet
from edgetune.checkpoint.tensors import Rows, is_finite, row_blocks
from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.merge.ledger import Layer

Parts = dict[tuple[str, str], torch.Tensor]


def load_parts(layer: Layer) -> Parts:
    """The layer's adapter tensors in float32. Raises InputRefusedError for NaN and infinity."""
    return {key: layer.ledger.load(source) for key, source in layer.parts.items()}


def merged_weight(layer: Layer, rows: Rows, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """The merged weight in blocks of rows; `shape` is the weight's.

    Raises InputRefusedError naming the module when the result is not finite.
    """
    parts = load_parts(layer)
    blocks = list(row_blocks(shape))
    if getattr(layer.peft, "fan_in_fan_out", False):
        blocks = [(0, shape[0])]  # a Conv1D's rows are its input: A is cut there, not B
    if _is_embedding(parts) and any(part == "lora_magnitude_vector" for _, part in parts):
        blocks = [(0, shape[0])]  # the norm of an embedding's DoRA runs over all rows
    for start, stop in blocks:
        sliced = parts
        if len(blocks) > 1:
            sliced = {key: _slice(key[1], tensor, start, stop) for key, tensor in parts.items()}
        yield _merge(layer, rows(start, stop), None, sliced).weight.data
        _empty(layer)


def merged_bias(layer: Layer, bias: torch.Tensor, in_features: int) -> torch.Tensor:
    """The merged bias [out] of a layer trained with lora_bias; the weight does not matter to it."""
    weight = torch.zeros(bias.numel(), in_features)
    merged: torch.Tensor = _merge(layer, weight, bias, load_parts(layer)).bias.data
    _empty(layer)
    return merged


def _slice(part: str, tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """The part of an adapter tensor that makes rows start…stop of the delta."""
    if part == "lora_embedding_A":
        return tensor[:, start:stop].contiguous()
    return tensor if part in ("lora_A.weight", "lora_embedding_B") else tensor[start:stop]


def _is_embedding(parts: Parts) -> bool:
    return any(part.startswith("lora_embedding") for _, part in parts)


def _fill(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, parts: Parts) -> None:
    """Put the base's weight and the adapters' tensors into PEFT's layer."""
    base = layer.peft.get_base_layer()
    base.weight = Parameter(weight, requires_grad=False)
    if getattr(base, "bias", None) is not None:
        # a stand-in where only the weight is wanted: merging adds to it, the sum is not used
        value = torch.zeros(weight.shape[0]) if bias is None else bias
        base.bias = Parameter(value, requires_grad=False)
    for (adapter, part), tensor in parts.items():
        holder, leaf = _place(layer.peft, adapter, part)
        _set(holder, leaf, Parameter(tensor, requires_grad=False))
    still_empty = [name for name, p in layer.peft.named_parameters() if p.device.type == "meta"]
    if still_empty:
        msg = f"{layer.module}: {still_empty[0]} got no values before the merge"
        raise StepFailedError(msg, "this is an error in edgetune; please report it")


def _merge(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, parts: Parts) -> Any:
    """Call PEFT's merge, prove that every adapter of this layer took part; the base layer."""
    _fill(layer, weight, bias, parts)
    peft = layer.peft
    peft.merged_adapters = []
    with torch.no_grad(), quiet():
        # Into the values themselves, which are a copy; PEFT's safe merge copies them once more.
        peft.merge(safe_merge=False)
    if not all(is_finite(p) for p in peft.get_base_layer().parameters()):
        msg = f"{layer.module}: the merged weight is not finite"
        raise InputRefusedError(msg, "the adapter is broken: save it again, or train again")
    if set(peft.merged_adapters) != {adapter for adapter, _ in layer.parts}:
        msg = f"{layer.module}: PEFT merged {peft.merged_adapters} and not every adapter"
        raise StepFailedError(msg, "this is an error in edgetune; please report it")
    return peft.get_base_layer()


def _empty(layer: Layer) -> None:
    """Take all values out again: only the meta device holds the layer between two blocks."""
    base = layer.peft.get_base_layer()
    peft = layer.peft
    peft._caches.clear()
    for holder, leaf in [(base, "weight"), (base, "bias")]:
        value = getattr(holder, leaf, None)
        if value is not None:
            _set(holder, leaf, _on_meta(value))
    for adapter, part in layer.parts:
        holder, leaf = _place(peft, adapter, part)
        value = (
            holder[leaf] if isinstance(holder, torch.nn.ParameterDict) else getattr(holder, leaf)
        )
        _set(holder, leaf, _on_meta(value))


def _place(peft: Any, adapter: str, part: str) -> tuple[Any, str]:
    """(module or dict, name) where PEFT's layer keeps this part of this adapter."""
    kind, _, leaf = part.partition(".")
    holder = getattr(peft, kind)
    if kind.startswith("lora_embedding"):
        return holder, adapter
    return holder[adapter], leaf or "weight"


def _set(holder: Any, leaf: str, value: Parameter) -> None:
    if isinstance(holder, torch.nn.ParameterDict):
        holder[leaf] = value
    else:
        setattr(holder, leaf, value)


def _on_meta(value: torch.Tensor) -> Parameter:
    return Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
