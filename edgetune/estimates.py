"""How large what a build makes will be, and what it takes: predicted from shapes, before it starts.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder, is_statistic
from edgetune.device import Device
from edgetune.errors import ENVIRONMENT, Problem
from edgetune.optimize.size import (
    cache_bytes_per_token,
    predict_graph_bytes,
    predict_memory_bytes,
)
from edgetune.optimize.widths import Widths

# The reference step beside the weights: torch and transformers, and one forward pass.
_TORCH_BYTES = 600_000_000
# How much of a device's memory a package may take: the system and its user need the rest.
_USABLE_MEMORY = 0.8


@dataclass(frozen=True)
class Estimates:
    """Predicted, not measured: bytes of the merged checkpoint, the graph, memory and disk.

    `device_memory_bytes` is a short answer's; each token of context adds `cache_token_bytes`.
    `build_memory_bytes` is the largest step's, the reference with its weights in memory.
    """

    merged_bytes: int
    graph_bytes: int
    device_memory_bytes: int
    cache_token_bytes: int
    build_memory_bytes: int
    disk_bytes: int


def estimate(
    base: CheckpointFolder,
    widths: Widths,
    *,
    adapted: bool,
    layered: bool,
    merges: int = 1,
    kv_cache: str = "float32",
    long_bytes: int = 0,
) -> Estimates:
    """Predict sizes from the tensors' shapes; see `Estimates`. `adapted`: with adapters;
    `layered`: run layer by layer; `merges`: how many merged checkpoints are compared;
    `long_bytes`: what its longest text takes in memory."""
    shapes = weight_shapes(base)
    weights = sum(math.prod(shape) for shape in shapes.values())
    graph = predict_graph_bytes(base.config, shapes, base.tied, widths)
    # Linears are stored in float32 where an adapter may touch them; the rest as it was.
    merged = sum(
        math.prod(shape) * (4 if adapted and _is_linear(name, shape) else 2)
        for name, shape in shapes.items()
    )
    scratch = 4 * weights if layered else 0
    return Estimates(
        merged_bytes=merged,
        graph_bytes=graph.total,
        device_memory_bytes=predict_memory_bytes(graph),
        cache_token_bytes=cache_bytes_per_token(base.config, kv_cache),
        build_memory_bytes=build_memory_bytes(base, long_bytes),
        # The graph lies in the store, in the package, and twice more while it is exported.
        disk_bytes=merges * merged + 4 * graph.total + scratch + 50_000_000,
    )


def build_memory_bytes(base: CheckpointFolder, long_bytes: int = 0) -> int:
    """Predicted peak of the largest step: the trained model in float32, the pages of the files it
    was loaded from, the libraries, and `long_bytes` for a pass over a long text."""
    weights = sum(math.prod(shape) for shape in weight_shapes(base).values())
    return 4 * weights + base.weight_bytes + _TORCH_BYTES + long_bytes


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name not in (EMBEDDING, HEAD)


def weight_shapes(base: CheckpointFolder) -> dict[str, tuple[int, ...]]:
    """{tensor: shape}; a packed 4-bit weight counts two a byte, in one row."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in base.tensors.items():
        if entry.dtype == "U8" and f"{name}.absmax" in base.tensors:
            shapes[name] = (1, 2 * math.prod(entry.shape))
        elif not is_statistic(name):
            shapes[name] = entry.shape
    return shapes


def room_problems(device: Device, estimates: Estimates, free_disk: int) -> Iterator[Problem]:
    """Too little memory on the device, too little disk here (`free_disk` bytes)."""
    memory = device.memory_gb.value * 1e9
    if estimates.device_memory_bytes > memory * _USABLE_MEMORY:
        yield Problem(
            f"the model needs about {estimates.device_memory_bytes / 1e9:.1f} GB of memory "
            f"(predicted), {device.name} has {memory / 1e9:.1f} GB, of which it may take "
            f"{100 * _USABLE_MEMORY:.0f} %",
            "choose a smaller scheme, a smaller base or a larger device",
        )
    if estimates.disk_bytes > free_disk:
        yield Problem(
            f"the build needs about {estimates.disk_bytes / 1e9:.2f} GB of disk (predicted), "
            f"{free_disk / 1e9:.2f} GB are free",
            "free some space, or name another output folder with -o",
            ENVIRONMENT,
        )
