"""PEFT's combination of several adapters as one adapter, which then is merged as any other."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

from edgetune.checkpoint.adapter import Adapter, read_adapter
from edgetune.checkpoint.combine import NAME
from edgetune.checkpoint.folder import CheckpointFolder
from edgetune.checkpoint.skeleton import meta_model, quiet
from edgetune.checkpoint.tensors import load_tensor
from edgetune.checkpoint.trained import with_adapters


@contextlib.contextmanager
def combined_adapter(
    base: CheckpointFolder, adapters: Sequence[tuple[Adapter, float]], settings: Mapping[str, Any]
) -> Iterator[Adapter]:
    """The combined adapter, in a folder that is gone after the block.

    PEFT combines on a model without weights: A and B are all that it reads. The adapters are in
    memory whole for it. Raises InputRefusedError for numbers that are not finite, and as
    `trained.with_adapters` does.
    """
    for adapter, _ in adapters:
        for entry in adapter.tensors.values():
            load_tensor(adapter.path, entry)
    given = [{"path": str(adapter.path), "weight": weight} for adapter, weight in adapters]
    model = with_adapters(_hollow(base), given, settings)
    with tempfile.TemporaryDirectory(prefix="edgetune-combined-") as folder, quiet():
        model.save_pretrained(folder, selected_adapters=[NAME], save_embedding_layers=False)
        yield read_adapter(Path(folder) / NAME)


def _hollow(base: CheckpointFolder) -> Any:
    """The base's model on the CPU, every parameter one zero seen many times: it takes no memory."""
    model = meta_model(base)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        zeros = torch.zeros(()).expand(parameter.shape)
        setattr(model.get_submodule(owner), leaf, Parameter(zeros, requires_grad=False))
    return model
