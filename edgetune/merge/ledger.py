"""Adapter tensors and their places; which of them went into the merged checkpoint: every one must,
once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from edgetune.checkpoint.adapter import Adapter
from edgetune.checkpoint.header import TensorEntry
from edgetune.checkpoint.tensors import load_rows, load_tensor


@dataclass(frozen=True)
class Source:
    """One tensor of one adapter's file; `name` is what PEFT's model calls the adapter."""

    name: str
    adapter: Adapter
    entry: TensorEntry


@dataclass(frozen=True)
class Ledger:
    """The adapter tensors that were read into the merged checkpoint: (adapter's name, tensor's)."""

    used: set[tuple[str, str]] = field(default_factory=set)

    def load(self, source: Source, *, note: bool = True) -> torch.Tensor:
        """Read a tensor and note it: numbers in float32, positions as the integers that they are.

        Raises InputRefusedError for NaN and infinity.
        """
        if note:
            self.note(source)
        tensor = load_tensor(source.adapter.path, source.entry)
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor

    def load_rows(self, source: Source, start: int, stop: int) -> torch.Tensor:
        """As `load`, some rows of it."""
        self.note(source)
        return load_rows(source.adapter.path, source.entry, start, stop).to(torch.float32)

    def note(self, source: Source) -> None:
        """Note a tensor as used."""
        self.used.add((source.name, source.entry.name))


@dataclass(frozen=True)
class Layer:
    """A LoRA layer of PEFT, and its tensors: {(adapter name in PEFT, part): source}."""

    module: str
    peft: Any
    parts: Mapping[tuple[str, str], Source]
    ledger: Ledger


@dataclass(frozen=True)
class Tokens:
    """Rows of an embedding that were trained by themselves: row `indices[k]` is the source's k."""

    source: Source
    indices: tuple[int, ...]
