"""A checkpoint's decoder layers rounded by GPTQ, one after the other; memory does not grow with
their number.

Each layer sees the texts as the rounded layers before it leave them, and each module inside a layer
as the modules before it do, so that later weights make up for earlier errors. Batches of text and
modules that are given the same run side by side, each on one thread, and are added up in order:
sums that several threads share depend on how many there are, and a graph must not depend on the
machine that built it having more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgetune.checkpoint.folder import EMBEDDING, CheckpointFolder, read_checkpoint
from edgetune.checkpoint.mapped import mapped_model
from edgetune.checkpoint.tensors import load_rows
from edgetune.errors import StepFailedError
from edgetune.optimize.gptq.layers import (
    Texts,
    feed,
    in_memory,
    linears,
    run_layer,
    stages_of,
    start_texts,
)
from edgetune.optimize.gptq.solve import Factors, Solved, error_factors, solve
from edgetune.optimize.rounding import ROUNDERS
from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.rounding.gptq import (
    HEAD,
    PACKED,
    SCALES,
    STEPS,
    ZERO_POINTS,
    file_of,
)
from edgetune.optimize.rounding.pack import pack, unpack
from edgetune.optimize.threads import one_thread, side_by_side
from edgetune.optimize.widths import Width, Widths

ALGORITHM = "gptq"
# Of sums over a batch, float32 [inputs, inputs], that wait to be added up.
_WAITING_BYTES = 512 << 20


def quantize_layers(
    checkpoint: Path,
    texts: Sequence[Sequence[int]],
    widths: Widths,
    codes: Path,
    progress: Callable[[str], None],
) -> None:
    """Write the codes of every linear module of the layers whose width says `gptq` into the folder
    `codes` (see `optimize.rounding.gptq`). `texts`: the calibration's token ids.

    Raises StepFailedError for a module that the texts do not reach: it would have to be guessed.
    """
    codes.mkdir(parents=True)
    folder = read_checkpoint(checkpoint)
    model, files = mapped_model(folder)
    with one_thread():
        running = start_texts(model, texts, lambda tokens: _embed(folder, tokens, widths))
    layers = model.model.layers
    for number, layer in enumerate(layers):
        progress(f"GPTQ: layer {number + 1} of {len(layers)}")
        name = f"model.layers.{number}"
        with in_memory(layer), one_thread():
            _quantize_layer(layer, name, running, number, widths, codes)
            run_layer(layer, running, number)
        files.release()


def _quantize_layer(
    layer: Any, name: str, texts: Texts, number: int, widths: Widths, codes: Path
) -> None:
    stages = stages_of(layer, texts, number)
    reached = {module for stage in stages for module in stage}
    for module in linears(layer):
        if module not in reached and widths.of(f"{name}.{module}").algorithm == ALGORITHM:
            msg = f"{name}.{module}: the calibration text does not reach it, and GPTQ needs inputs"
            raise StepFailedError(msg, "choose a scheme that rounds to nearest, such as w4a16-rtn")
    for stage in stages:
        of = {module: widths.of(f"{name}.{module}") for module in stage}
        sizes = {width.group_size for width in of.values() if width.algorithm == ALGORITHM}
        factors: dict[int | None, Factors] = {}
        if sizes:
            hessian = _hessian(layer, texts, number, stage[0])
            factors = {size: error_factors(hessian, size) for size in sizes if size}
        jobs = [
            (layer.get_submodule(module).weight, f"{name}.{module}", width, factors, codes)
            for module, width in of.items()
            if width.quantized
        ]
        for _ in side_by_side(lambda job: _quantize(*job), jobs):
            pass


def _quantize(
    weight: torch.nn.Parameter,
    module: str,
    width: Width,
    factors: Mapping[int | None, Factors],
    codes: Path,
) -> None:
    """Round a module's weight in place; what GPTQ made of it is written."""
    if width.algorithm != ALGORITHM:
        weight.data = _rounded(Block(module, 0, weight.data), width)
        return
    solved = solve(weight.data, factors[width.group_size], width)
    weight.data = solved.values(width)
    _write(_packed(solved, width), width, file_of(codes, module))


def _packed(solved: Solved, width: Width) -> Rounded:
    points, steps = (
        None if part is None else part.numpy() for part in (solved.zero_points, solved.steps)
    )
    return pack(solved.codes.numpy(), solved.scales.numpy(), points, width, steps)


def _hessian(layer: Any, texts: Texts, number: int, module: str) -> torch.Tensor:
    """Σ x·xᵀ of what a module is given, float32 [inputs, inputs]."""
    inputs = layer.get_submodule(module).in_features
    total = torch.zeros((inputs, inputs))
    most = max(1, _WAITING_BYTES // total.nbytes)
    for part in feed(layer, texts, number, module, lambda given: given.T @ given, most):
        total += part
    return total


def _embed(folder: CheckpointFolder, tokens: torch.Tensor, widths: Widths) -> torch.Tensor:
    """The embedding's rows of some tokens [n, hidden] as the graph will hold them, float32."""
    source = folder.tied_source if folder.tied else EMBEDDING
    entry = folder.tensors[source]
    rows = [load_rows(folder.path, entry, n, n + 1).float() for n in tokens.tolist()]
    whole = torch.cat(rows)
    module = HEAD if folder.tied else EMBEDDING.removesuffix(".weight")
    width = widths.of(HEAD) if folder.tied else widths.of_embedding()
    if not width.quantized:
        return whole
    algorithm = "rtn" if width.algorithm == ALGORITHM else str(width.algorithm)
    return _rounded(Block(module, 0, whole), width, algorithm)


def _rounded(block: Block, width: Width, algorithm: str | None = None) -> torch.Tensor:
    rounder = ROUNDERS[algorithm or str(width.algorithm)]
    return unpack(rounder(block, width), width, block.values.shape[1])


def _write(rounded: Rounded, width: Width, file: Path) -> None:
    tensors: Mapping[str, Any] = {
        PACKED: rounded.packed,
        SCALES: rounded.scales,
        ZERO_POINTS: rounded.zero_points,
        STEPS: rounded.steps,
    }
    made = {
        key: torch.from_numpy(value).contiguous()
        for key, value in tensors.items()
        if value is not None
    }
    save_file(made, file, {"width": width.name})
