"""What the parts of the sensitivity step share: the model, the text, what is known in float32."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.optimize.allocation_widths import EMBEDDING_MODULE
from edgetune.optimize.widths import Width
from edgetune.reference.render import ScoredItem
from edgetune.reference.survival_worker import Scored, kl_of_items
from edgetune.sensitivity.layers import InputSums, layers_of, rounding_inputs, running

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Measurement:
    """What the functions share: the model, the text, and what is known of it in float32."""

    model: Any
    items: tuple[ScoredItem, ...]
    rows: tuple[slice, ...]
    # Log-probabilities (or logits) of the merged model, [positions, vocabulary].
    trained: NDArray[np.float32]
    # What each layer gives for each item.
    states: list[list[torch.Tensor]]
    sums: Mapping[str, InputSums]
    # Whether products round what they are given to 8 bits.
    rounds_inputs: bool
    # What a width's name does not say, rounded to nearest.
    default: Width
    # Who rounds the graph, and the text that it may see for it.
    algorithm: str
    seen: tuple[ScoredItem, ...]

    @property
    def positions(self) -> int:
        return int(self.rows[-1].stop)

    def kl_from(self, first: int, given: Sequence[torch.Tensor | None]) -> float:
        """KL(merged ‖ the model as it is now) in nats a token, from layer `first` on; `given`: what
        goes into that layer for each item."""
        layers, total = layers_of(self.model), 0.0
        for item, rows, state in zip(self.items, self.rows, given, strict=True):
            with running(layers, first, len(layers), state):
                total += sum(kl_of_items(self.model, Scored((item,), (rows,)), self.trained))
        return total / self.positions

    def rounding(self, widths: Mapping[str, Width]) -> AbstractContextManager[None]:
        """While it is open, modules of these widths round what they are given as the graph will."""
        groups = {
            self.model.get_submodule(name): width.group_size
            for name, width in widths.items()
            if self.rounds_inputs and width.group_size and name != EMBEDDING_MODULE
        }
        return rounding_inputs(groups)

    def before(self, first: int) -> Sequence[torch.Tensor | None]:
        """What goes into a layer in float32, for each item."""
        return [None] * len(self.items) if first == 0 else self.states[first - 1]


def layer_of(module: str) -> int:
    """The number of the layer that a module stands in; −1 for the embedding and the head."""
    found = _LAYER.match(module)
    return int(found[1]) if found else -1


def digits(value: float) -> float:
    """Four digits: the last ones depend on how the processor adds."""
    return float(f"{value:.4g}")
