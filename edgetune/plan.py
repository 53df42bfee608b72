"""A plan: one recipe for one device, everything resolved, every problem found before work starts.

Pure: no file is written, no model is loaded, no heavy library is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgetune.checkpoint.adapter import Adapter
from edgetune.checkpoint.combination import merge_problems, merge_warnings
from edgetune.checkpoint.experts import experts_problems
from edgetune.checkpoint.families import unsupported_reason
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder, is_statistic
from edgetune.device import Device, is_here
from edgetune.errors import ENVIRONMENT, INPUT_REFUSED, EdgetuneError, PlanError, Problem
from edgetune.host import Host
from edgetune.optimize.forms.decoder import export_problem
from edgetune.optimize.schemes import Scheme, parse_scheme, variant_name
from edgetune.optimize.size import (
    cache_bytes_per_token,
    predict_graph_bytes,
    predict_memory_bytes,
)
from edgetune.providers import check_kernels, find_provider
from edgetune.recipe import Recipe

# The reference step beside the weights: torch and transformers, and one forward pass.
_TORCH_BYTES = 1_000_000_000
# How much of a device's memory a package may take: the system and its user need the rest.
_USABLE_MEMORY = 0.8
BUILD_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "olive-ai",
    "onnx",
)


@dataclass(frozen=True)
class Origin:
    """What an input is called: a folder's name; or a hub id, the revision that was asked for, and
    the commit that it was."""

    name: str
    revision: str | None = None
    commit: str | None = None

    def as_json(self) -> dict[str, str]:
        """For the lock: nothing but the name of a folder."""
        if self.commit is None:
            return {"name": self.name}
        return {"name": self.name, "revision": self.revision or "main", "commit": self.commit}


@dataclass(frozen=True)
class AdapterInput:
    """An adapter folder, read and digested, with the weight of its delta."""

    adapter: Adapter
    weight: float
    digests: Mapping[str, str]
    origin: Origin


@dataclass(frozen=True)
class DataInput:
    """A data file, read and digested."""

    path: Path
    items: int
    digest: str


@dataclass(frozen=True)
class Inputs:
    """Everything a recipe names, resolved to local folders and digests."""

    base: CheckpointFolder
    base_digests: Mapping[str, str]
    base_origin: Origin
    adapters: tuple[AdapterInput, ...] = ()
    before: CheckpointFolder | None = None
    before_digests: Mapping[str, str] = field(default_factory=dict)
    before_origin: Origin | None = None
    evaluation: DataInput | None = None
    calibration: DataInput | None = None


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


@dataclass(frozen=True)
class Plan:
    """One recipe for one device."""

    recipe: Recipe
    device: Device
    inputs: Inputs
    scheme: Scheme
    group_size: int | None
    provider: str
    here: bool
    threads: int
    estimates: Estimates
    # The trained model does not fit this machine's memory: it is run layer by layer.
    layered: bool = False

    @property
    def identifier(self) -> str:
        """`<recipe>@<device>`, one string for one unit of work."""
        return f"{self.recipe.name}@{self.device.name}"

    @property
    def variant(self) -> str:
        """The variant's folder name in the package, `<provider>-<scheme>`."""
        return variant_name(self.provider, self.scheme.name, self.group_size)


def make_plan(
    recipe: Recipe,
    device: Device,
    inputs: Inputs,
    host: Host,
    installed: Mapping[str, str | None],
    free_disk_bytes: int,
    free_memory_bytes: int,
) -> Plan:
    """The plan of a recipe for a device. Raises PlanError that lists every problem."""
    found = list(problems(recipe, inputs, installed))
    try:
        scheme, group_size = parse_scheme(recipe.scheme, recipe.group_size)
        provider = find_provider(device.providers[0].name).EXECUTION_PROVIDER
    except EdgetuneError as why:
        found.append(Problem(why.message, why.hint, why.exit_code))
        raise PlanError(found) from why
    layered = build_memory_bytes(inputs.base) > free_memory_bytes
    estimates = estimate(inputs, scheme, group_size, layered)
    found.extend(_room_problems(device, estimates, free_disk_bytes))
    try:
        check_kernels(provider, scheme.name, scheme.precision)
    except EdgetuneError as why:
        found.append(Problem(why.message, why.hint, why.exit_code))
    if found:
        raise PlanError(found)
    here = is_here(device, host)
    return Plan(
        recipe=recipe,
        device=device,
        inputs=inputs,
        scheme=scheme,
        group_size=group_size,
        provider=provider,
        here=here,
        threads=min(device.session.intra_op_num_threads, host.cores),
        estimates=estimates,
        layered=layered,
    )


def problems(
    recipe: Recipe, inputs: Inputs, installed: Mapping[str, str | None]
) -> Iterator[Problem]:
    """Every reason why this recipe cannot be built, whatever the device."""
    missing = [name for name in BUILD_LIBRARIES if installed.get(name) is None]
    if missing:
        yield Problem(
            f"a build needs {', '.join(missing)}, not installed here",
            "install the build tools: python -m pip install 'edgetune[build]'",
            ENVIRONMENT,
        )
    base = inputs.base
    if inputs.before is not None and inputs.adapters:
        yield Problem(
            "base_before is for a full fine-tune, and this recipe has adapters",
            "leave base_before out: the base alone is the base without its adapters",
        )
    if (recipe.base.trained_as or base.quantization) and installed.get("bitsandbytes") is None:
        yield Problem(
            "a base trained on as 4-bit weights needs bitsandbytes, not installed here",
            "python -m pip install bitsandbytes",
            ENVIRONMENT,
        )
    yield from experts_problems(base.config, str(base.path))
    # An unsupported base is told below, with every other reason why it cannot be merged onto.
    if not unsupported_reason(base.config) and (reason := export_problem(base.config)):
        yield Problem(f"{base.path}: {reason}", "", INPUT_REFUSED)
    trained_as = recipe.base.trained_as.model_dump() if recipe.base.trained_as else None
    weighted = [(entry.adapter, entry.weight) for entry in inputs.adapters]
    combine = recipe.combine.model_dump() if recipe.combine else None
    yield from merge_problems(base, weighted, trained_as, recipe.onto, combine)


def warnings_of(inputs: Inputs) -> list[str]:
    """What is odd about the inputs but does not stop a build."""
    return merge_warnings(inputs.base, [entry.adapter for entry in inputs.adapters])


def estimate(inputs: Inputs, scheme: Scheme, group_size: int | None, layered: bool) -> Estimates:
    """Predict sizes from the tensors' shapes; see `Estimates`."""
    base = inputs.base
    shapes = _shapes(base)
    weights = sum(math.prod(shape) for shape in shapes.values())
    graph_bytes = predict_graph_bytes(base.config, shapes, base.tied, scheme, group_size)
    # Linears are stored in float32 where an adapter may touch them; the rest as it was.
    merged = sum(
        math.prod(shape) * (4 if inputs.adapters and _is_linear(name, shape) else 2)
        for name, shape in shapes.items()
    )
    scratch = 4 * weights if layered else 0
    return Estimates(
        merged_bytes=merged,
        graph_bytes=graph_bytes,
        device_memory_bytes=predict_memory_bytes(graph_bytes),
        cache_token_bytes=cache_bytes_per_token(base.config),
        build_memory_bytes=build_memory_bytes(base),
        # The graph lies in the store, in the package, and twice more while it is exported.
        disk_bytes=merged + 4 * graph_bytes + scratch + 50_000_000,
    )


def build_memory_bytes(base: CheckpointFolder) -> int:
    """Predicted memory of the largest step: the trained model in float32, and the libraries."""
    return 4 * sum(math.prod(shape) for shape in _shapes(base).values()) + _TORCH_BYTES


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name not in (EMBEDDING, HEAD)


def _shapes(base: CheckpointFolder) -> dict[str, tuple[int, ...]]:
    """{tensor: shape}; a packed 4-bit weight counts two a byte, in one row."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in base.tensors.items():
        if entry.dtype == "U8" and f"{name}.absmax" in base.tensors:
            shapes[name] = (1, 2 * math.prod(entry.shape))
        elif not is_statistic(name):
            shapes[name] = entry.shape
    return shapes


def _room_problems(device: Device, estimates: Estimates, free_disk: int) -> Iterator[Problem]:
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
