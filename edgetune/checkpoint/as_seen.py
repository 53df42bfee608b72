"""A base's weights as an adapter saw them, by module, some rows at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from edgetune.checkpoint.adapter import base_shape
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder, read_checkpoint
from edgetune.checkpoint.four_bit import four_bit_modules, four_bit_weight
from edgetune.checkpoint.tensors import Rows, load_rows


def weights_as_seen(
    path: Path, trained_as: Mapping[str, Any] | None
) -> Callable[[str], tuple[int, Rows] | None]:
    """Finds (how many rows, what reads them in float32) of a module's weight; null where the base
    has none. One 4-bit weight is held at a time, in each thread that reads."""
    base = read_checkpoint(path)
    four_bit = four_bit_modules(base, trained_as)
    held = threading.local()

    def find(module: str) -> tuple[int, Rows] | None:
        name = _stored_name(base, f"{module}.weight")
        shape = base_shape(base, name) if name else None
        if name is None or shape is None or len(shape) != 2:
            return None
        if module not in four_bit:
            entry = base.tensors[name]
            return shape[0], lambda start, stop: load_rows(path, entry, start, stop).float()

        def unpacked(start: int, stop: int) -> torch.Tensor:
            if getattr(held, "module", None) != module:
                held.module = held.weight = None
                held.weight = four_bit_weight(base, module, trained_as)
                held.module = module
            weight: torch.Tensor = held.weight
            return weight[start:stop]

        return shape[0], unpacked

    return find


def _stored_name(base: CheckpointFolder, name: str) -> str | None:
    if name in base.tensors:
        return name
    return base.tied_source if base.tied and name in (EMBEDDING, HEAD) else None
