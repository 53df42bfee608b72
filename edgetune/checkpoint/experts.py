"""Mixtures of experts: bases that are merged as a checkpoint, and cannot be exported.

transformers 5 holds the experts of a layer in two parameters, `experts.gate_up_proj` [experts, 2 ×
width, hidden] and `experts.down_proj` [experts, hidden, width], and that is what an adapter targets
(`target_parameters`); a checkpoint stores each expert's matrices by themselves, under names of its
own. Here the two namings are put together (transformers' `conversion_mapping.py` has the same).
Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.checkpoint.families import quantization_reason, unsupported_reason
from edgetune.errors import INPUT_REFUSED, Problem


@dataclass(frozen=True)
class Naming:
    """How a family's checkpoints name a layer's mixture and its matrices, in a model's order."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True)
class Place:
    """Where a stored tensor lies in the model: a parameter, and of an expert's matrix which
    expert and which half of the rows (0 gate, 1 up; None: all)."""

    parameter: str
    expert: int | None = None
    half: int | None = None


_OWN = Naming()
# None: stored as the model has it
EXPERTS: dict[str, Naming | None] = {
    "llama4_text": None,
    "mixtral": Naming("block_sparse_moe", "w1", "w3", "w2"),
    "olmoe": _OWN,
    "qwen2_moe": _OWN,
    "qwen3_moe": _OWN,
}
_STORED = re.compile(
    r"(?P<layer>model\.layers\.\d+)\.(?P<block>mlp|block_sparse_moe)\."
    r"(?:experts\.(?P<expert>\d+)\.(?P<matrix>\w+)\.weight|(?P<rest>.+))"
)


def merge_reason(config: Mapping[str, Any]) -> str | None:
    """Why adapters cannot be merged onto a base of this config, by name; None when they can."""
    if config.get("model_type") in EXPERTS:
        return quantization_reason(config.get("quantization_config") or config.get("quantization"))
    return unsupported_reason(config)


def experts_problems(config: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """What cannot be done with a mixture of experts that can be merged."""
    model_type = config.get("model_type")
    if model_type in EXPERTS:
        message = f"{place}: {model_type} is a mixture of experts: it can be merged, not exported"
        hint = "name a dense base, or take the merged checkpoint: merge it with PEFT"
        yield Problem(message, hint, INPUT_REFUSED)


def place_of(model_type: str, stored: str) -> Place:
    """Where a tensor of a checkpoint lies in the model of this family.

    >>> place_of("mixtral", "model.layers.1.block_sparse_moe.experts.3.w3.weight")
    Place(parameter='model.layers.1.mlp.experts.gate_up_proj', expert=3, half=1)
    >>> place_of("llama", "model.norm.weight")
    Place(parameter='model.norm.weight', expert=None, half=None)
    """
    naming = EXPERTS.get(model_type)
    match = _STORED.fullmatch(stored) if naming else None
    if naming is None or match is None or match["block"] != naming.block:
        return Place(stored)
    if match["expert"] is None:
        return Place(f"{match['layer']}.mlp.{match['rest']}")
    halves = {naming.gate: 0, naming.up: 1, naming.down: None}
    if match["matrix"] not in halves:
        return Place(stored)
    half = halves[match["matrix"]]
    leaf = "down_proj" if half is None else "gate_up_proj"
    return Place(f"{match['layer']}.mlp.experts.{leaf}", int(match["expert"]), half)


def stored_names(model_type: str, parameter: str, shape: tuple[int, ...]) -> list[str]:
    """The tensors of a checkpoint that make up a parameter of this shape, expert by expert, gate
    before up."""
    naming = EXPERTS.get(model_type)
    layer, dot, leaf = parameter.partition(".mlp.")
    if naming is None or not dot:
        return [parameter]
    if leaf not in ("experts.gate_up_proj", "experts.down_proj"):
        return [f"{layer}.{naming.block}.{leaf}"]
    matrices = (naming.down,) if leaf.endswith("down_proj") else (naming.gate, naming.up)
    return [
        f"{layer}.{naming.block}.experts.{expert}.{matrix}.weight"
        for expert in range(shape[0])
        for matrix in matrices
    ]


def stored_shapes(
    model_type: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """A model's parameters and shapes under the names of its checkpoint's tensors."""
    found: dict[str, tuple[int, ...]] = {}
    for parameter, shape in shapes.items():
        names = stored_names(model_type, parameter, shape)
        if len(names) == 1:
            found[names[0]] = shape
            continue
        rows = shape[1] // (len(names) // shape[0])
        found |= dict.fromkeys(names, (rows, *shape[2:]))
    return found
