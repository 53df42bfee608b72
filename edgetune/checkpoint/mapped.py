"""A checkpoint's model whose large weights stay in their files: mapped, read when they are used."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder
from edgetune.checkpoint.header import TensorEntry
from edgetune.checkpoint.skeleton import meta_model
from edgetune.checkpoint.tensors import TORCH_DTYPES, load_tensor
from edgetune.errors import InputRefusedError


@dataclass
class MappedFiles:
    """The weight files of one checkpoint, mapped privately as far as they are used."""

    folder: Path
    _maps: dict[str, mmap.mmap] = field(default_factory=dict)

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        """The tensor in its own type, over mapped pages."""
        if entry.file not in self._maps:
            with (self.folder / entry.file).open("rb") as file:
                self._maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        dtype = TORCH_DTYPES[entry.dtype]
        flat = torch.frombuffer(
            self._maps[entry.file],
            dtype=dtype,
            count=entry.nbytes // dtype.itemsize,
            offset=entry.begin,
        )
        return flat.reshape(entry.shape)

    def release(self) -> None:
        """Drop the pages read so far: a mapped page counts in the process's resident set."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)


def mapped_model(checkpoint: CheckpointFolder) -> tuple[Any, MappedFiles]:
    """The checkpoint's causal language model: matrices mapped, in the types they are stored in;
    everything else (norms, biases), which the builder may calculate with, in memory in float32.

    Raises InputRefusedError naming a parameter that no file holds.
    """
    model = meta_model(checkpoint)
    files = MappedFiles(checkpoint.path)
    tensors = {}
    for name, _ in model.named_parameters():
        stored = stored_name(checkpoint, name)
        entry = checkpoint.tensors[stored]
        large = len(entry.shape) > 1
        tensors[stored] = (
            files.tensor(entry) if large else load_tensor(checkpoint.path, entry, torch.float32)
        )
    assign_parameters(model, checkpoint, tensors)
    return model, files


def stored_name(checkpoint: CheckpointFolder, name: str) -> str:
    """The tensor that holds a parameter: its own name, or for both embeddings of a tied model the
    one that is stored. Raises InputRefusedError when no file holds it."""
    stored = checkpoint.tied_source if checkpoint.tied and name in (EMBEDDING, HEAD) else name
    if stored not in checkpoint.tensors:
        msg = f"{checkpoint.path}: no file holds {stored!r}, which config.json asks for"
        raise InputRefusedError(msg, "config.json and weight files do not belong together")
    return stored


def assign_parameters(
    model: Any, checkpoint: CheckpointFolder, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Give a model on the meta device its parameters, {stored name: tensor}; tied ones are one."""
    parameters = {
        name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()
    }
    for name, _ in list(model.named_parameters(remove_duplicate=False)):
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, parameters[stored_name(checkpoint, name)])
