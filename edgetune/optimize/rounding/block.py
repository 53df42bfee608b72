"""What goes into a rounding algorithm and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of a module's weight: values [outputs, inputs] of any float type, the first
    of them the module's row `start`.

    `scratch` outlives the block: a place for what the next one of the same matrix can use again.
    """

    module: str
    start: int
    values: torch.Tensor
    scratch: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rounded:
    """A block as MatMulNBits stores it: `packed` uint8 [outputs, groups, bytes a group] (4 bits:
    the earlier value in the lower half), `scales` float32 [outputs, groups], `zero_points` uint8
    [outputs, bytes] (4 bits: two groups a byte, the earlier in the lower half), or null: symmetric.
    `steps`: float32 [outputs, 1], of which the scales are whole numbers (`rounding.scales`), or
    null: any float32.
    """

    packed: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    zero_points: np.ndarray[Any, Any] | None = None
    steps: np.ndarray[Any, Any] | None = None
