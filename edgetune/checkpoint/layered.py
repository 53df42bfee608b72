"""A model too large for memory, run layer by layer, in float32.

Its weights are written once as float32 into a scratch file and mapped; after each layer the pages
it read are dropped. The operations are those of a model in memory, on the same numbers: the
results are equal to the last bit (tested). Only the disk is slower. (accelerate's disk offload
computes in the type that is stored, and PEFT 0.21 cannot put an adapter on such a model.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from edgetune.checkpoint.folder import SINGLE_FILE, CheckpointFolder, read_checkpoint
from edgetune.checkpoint.four_bit import four_bit_modules, four_bit_weight
from edgetune.checkpoint.header import read_header
from edgetune.checkpoint.mapped import MappedFiles, assign_parameters, stored_name
from edgetune.checkpoint.skeleton import meta_model
from edgetune.checkpoint.tensors import (
    Output,
    load_rows,
    load_tensor,
    row_blocks,
    write_checkpoint_weights,
)
from edgetune.files import need_space


def load_layered(path: Path, trained_as: Mapping[str, Any] | None, scratch: Path) -> Any:
    """The checkpoint's model in float32, its matrices mapped from a file in `scratch`.

    `trained_as`: dequantize as the adapter saw it. Raises InputRefusedError for a checkpoint that
    lacks a parameter, MissingError when the disk has no room for the float32 weights.
    """
    base = read_checkpoint(path)
    model = meta_model(base)
    names = [name for name, _ in model.named_parameters()]
    shapes = {stored_name(base, name): tuple(model.get_parameter(name).shape) for name in names}
    linears = four_bit_modules(base, trained_as)
    outputs = [_output(base, name, shapes[name], linears, trained_as) for name in sorted(shapes)]
    need_space(scratch, sum(output.nbytes for output in outputs), "the model in float32")
    folder = scratch / f"float32-{path.name}"
    folder.mkdir()
    write_checkpoint_weights(folder, outputs, shard_bytes=1 << 62)
    # The mapping keeps the file; nothing is left behind, however the process ends.
    files = MappedFiles(folder)
    written = read_header(folder / SINGLE_FILE)
    assign_parameters(model, base, {name: files.tensor(written[name]) for name in shapes})
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    for module in model.modules():
        if type(module).__name__.endswith("DecoderLayer") or module is model:
            module.register_forward_hook(lambda *_: files.release())
    return model.eval()


def _output(
    base: CheckpointFolder,
    name: str,
    shape: tuple[int, ...],
    linears: frozenset[str],
    trained_as: Mapping[str, Any] | None,
) -> Output:
    module = name.removesuffix(".weight")

    def blocks() -> Iterable[torch.Tensor]:
        if module in linears:
            yield four_bit_weight(base, module, trained_as)
        elif len(shape) == 1:
            yield load_tensor(base.path, base.tensors[name], torch.float32)
        else:
            for start, stop in row_blocks(shape):
                yield load_rows(base.path, base.tensors[name], start, stop).float()

    return Output(name, "F32", shape, blocks)
