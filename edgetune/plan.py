"""A plan: one recipe for one device, everything resolved, every problem found before work starts.

Pure: no file is written, no model is loaded, no heavy library is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgetune.checkpoint.adapter import Adapter
from edgetune.checkpoint.combination import merge_problems, merge_warnings
from edgetune.checkpoint.families import unsupported_reason
from edgetune.checkpoint.folder import CheckpointFolder
from edgetune.device import Device, is_here
from edgetune.errors import ENVIRONMENT, INPUT_REFUSED, EdgetuneError, PlanError, Problem
from edgetune.host import Host
from edgetune.optimize.forms.decoder import export_problem
from edgetune.optimize.schemes import Scheme, parse_scheme, variant_name
from edgetune.providers import check_kernels, find_provider
from edgetune.recipe import Recipe

# What the runtime holds besides the graph: code, arena, key-value cache of a short context.
_RUNTIME_OVERHEAD_BYTES = 150_000_000
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
    """Predicted, not measured: bytes of the merged checkpoint, the graph, memory and disk."""

    merged_bytes: int
    graph_bytes: int
    device_memory_bytes: int
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
) -> Plan:
    """The plan of a recipe for a device. Raises PlanError that lists every problem."""
    found = list(problems(recipe, inputs, installed))
    try:
        scheme, group_size = parse_scheme(recipe.scheme, recipe.group_size)
        provider = find_provider(device.providers[0].name).EXECUTION_PROVIDER
    except EdgetuneError as why:
        found.append(Problem(why.message, why.hint, why.exit_code))
        raise PlanError(found) from why
    estimates = estimate(inputs, scheme, group_size)
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
    # An unsupported base is told below, with every other reason why it cannot be merged onto.
    if not unsupported_reason(base.config) and (reason := export_problem(base.config)):
        yield Problem(f"{base.path}: {reason}", "", INPUT_REFUSED)
    trained_as = recipe.base.trained_as.model_dump() if recipe.base.trained_as else None
    weighted = [(entry.adapter, entry.weight) for entry in inputs.adapters]
    yield from merge_problems(base, weighted, trained_as, recipe.onto)


def warnings_of(inputs: Inputs) -> list[str]:
    """What is odd about the inputs but does not stop a build."""
    return merge_warnings(inputs.base, [entry.adapter for entry in inputs.adapters])


def estimate(inputs: Inputs, scheme: Scheme, group_size: int | None) -> Estimates:
    """Predict sizes from the tensors' shapes; see `Estimates`."""
    merged = 0.0
    graph = float(_rotary_bytes(inputs.base.config))
    stored = scheme.bits_per_weight(group_size) / 8
    # The builder shares a tied embedding with the head, but not at eight bits.
    shared = inputs.base.tied and scheme.weight_bits in (4, 32)
    for name, (count, matrix) in _parameters(inputs.base).items():
        embedding, head = "embed_tokens" in name, "lm_head" in name
        if inputs.base.tied and head and inputs.base.tied_source != name:
            continue  # stored twice, built once
        merged += count * (4 if matrix and not (embedding or head) else 2)
        if embedding or (inputs.base.tied and head):
            graph += count * (stored if shared else 4)
            graph += count * stored if inputs.base.tied and not shared else 0
        else:
            graph += count * (stored if matrix else 4)
    side_files = sum(
        (inputs.base.path / name).stat().st_size
        for name in inputs.base.files
        if not name.endswith(".safetensors")
    )
    graph_bytes, merged_bytes = int(graph) + side_files, int(merged) + side_files
    return Estimates(
        merged_bytes=merged_bytes,
        graph_bytes=graph_bytes,
        device_memory_bytes=graph_bytes + _RUNTIME_OVERHEAD_BYTES,
        # The graph lies in the store, in the package, and once more while it is exported.
        disk_bytes=merged_bytes + 3 * graph_bytes + 50_000_000,
    )


def _rotary_bytes(config: Mapping[str, object]) -> int:
    """The float32 tables of cosine and sine, one row a position, that a graph carries."""
    sizes = [config.get(key) for key in ("max_position_embeddings", "hidden_size", "head_dim")]
    context, hidden, head = (size if isinstance(size, int) else 0 for size in sizes)
    heads = config.get("num_attention_heads")
    head = head or (hidden // heads if isinstance(heads, int) and heads else 0)
    tables = 2 if str(config.get("model_type")).startswith("gemma3") else 1
    return context * head * 4 * tables


def _parameters(base: CheckpointFolder) -> dict[str, tuple[int, bool]]:
    """{tensor: (number of weights, is a matrix)}; packed 4-bit tensors count two a byte."""
    counts: dict[str, tuple[int, bool]] = {}
    for name, entry in base.tensors.items():
        count = 1
        for size in entry.shape:
            count *= size
        if entry.dtype == "U8" and f"{name}.absmax" in base.tensors:
            counts[name] = (count * 2, True)
        elif ".absmax" not in name and ".quant_" not in name and ".nested_" not in name:
            counts[name] = (count, len(entry.shape) == 2)
    return counts


def _room_problems(device: Device, estimates: Estimates, free_disk: int) -> Iterator[Problem]:
    memory = device.memory_gb.value * 1e9
    if estimates.device_memory_bytes > memory * _USABLE_MEMORY:
        yield Problem(
            f"the model needs about {estimates.device_memory_bytes / 1e9:.1f} GB of memory "
            f"(predicted), {device.name} has {memory / 1e9:.1f} GB",
            "choose a smaller scheme, a smaller base or a larger device",
        )
    if estimates.disk_bytes > free_disk:
        yield Problem(
            f"the build needs about {estimates.disk_bytes / 1e9:.2f} GB of disk (predicted), "
            f"{free_disk / 1e9:.2f} GB are free",
            "free some space, or name another output folder with -o",
            ENVIRONMENT,
        )
