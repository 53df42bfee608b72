"""A plan: one recipe for one device, everything resolved, every problem found before work starts.

Pure: no file is written, no model is loaded, no heavy library is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgetune.checkpoint.adapter import CONFIG_FILE, Adapter
from edgetune.checkpoint.combination import merge_problems, merge_warnings
from edgetune.checkpoint.folder import CheckpointFolder
from edgetune.device import Device, is_here
from edgetune.errors import ENVIRONMENT, INPUT_REFUSED, EdgetuneError, PlanError, Problem
from edgetune.files import digest_of_json, read_json
from edgetune.host import Host
from edgetune.optimize.forms.decoder import export_problem
from edgetune.optimize.schemes import Scheme, parse_scheme, variant_name
from edgetune.providers import check_kernels, find_provider
from edgetune.recipe import Recipe

# What the runtime holds besides the graph: code, arena, key-value cache of a short context.
_RUNTIME_OVERHEAD_BYTES = 150_000_000
# How much of a device's memory a package may take: the system and its user need the rest.
_USABLE_MEMORY = 0.8
_TOKENIZERS = {
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json",
    "sentencepiece.bpe.model",
}  # fmt: skip
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
class AdapterInput:
    """An adapter folder, read and digested, with the weight of its delta."""

    adapter: Adapter
    weight: float
    digests: Mapping[str, str]


@dataclass(frozen=True)
class DataInput:
    """A data file, read and digested."""

    path: Path
    items: int
    digest: str
    # Whether an item is a chat, which takes a chat template.
    chats: bool = False


@dataclass(frozen=True)
class Inputs:
    """Everything a recipe names, resolved to local folders and digests."""

    base: CheckpointFolder
    base_digests: Mapping[str, str]
    adapters: tuple[AdapterInput, ...] = ()
    before: CheckpointFolder | None = None
    before_digests: Mapping[str, str] = field(default_factory=dict)
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
    yield from _input_problems(inputs)
    if reason := export_problem(base.config):
        hint = "this base cannot be exported rightly yet: choose another one"
        yield Problem(f"{base.path}: {reason}", hint, INPUT_REFUSED)
    trained_as = recipe.base.trained_as.model_dump() if recipe.base.trained_as else None
    weighted = [(entry.adapter, entry.weight) for entry in inputs.adapters]
    yield from merge_problems(base, weighted, trained_as, recipe.onto)


def _input_problems(inputs: Inputs) -> Iterator[Problem]:
    """What the line would stumble over after the merge, or do without being meant to."""
    base = inputs.base
    names = {Path(name).name for name in base.side_files}
    if not names & _TOKENIZERS:
        yield Problem(
            f"{base.path}: no tokenizer (tokenizer.json)",
            "copy the tokenizer's files of the model into the folder",
            INPUT_REFUSED,
        )
    elif inputs.evaluation and inputs.evaluation.chats and not _has_template(base):
        yield Problem(
            f"{inputs.evaluation.path}: holds chats, and {base.path} has no chat template",
            "give `prompt` and `completion` as text, or put chat_template.jinja beside the weights",
        )
    seen: dict[str, AdapterInput] = {}
    for entry in inputs.adapters:
        if entry.weight == 0:
            yield Problem(
                f"{entry.adapter.path}: its weight is 0, so it would change nothing",
                "leave the adapter out, or give it a weight",
            )
        weights = {n: d for n, d in entry.digests.items() if n != CONFIG_FILE}
        digest = digest_of_json(weights)
        if digest in seen:
            yield Problem(
                f"{entry.adapter.path}: the same weights as {seen[digest].adapter.path}",
                "name it once, with a weight in a recipe",
            )
        seen[digest] = entry


def _has_template(base: CheckpointFolder) -> bool:
    if any("chat_template" in name for name in base.side_files):
        return True
    settings = base.path / "tokenizer_config.json"
    config = read_json(settings) if settings.is_file() else None
    return isinstance(config, dict) and bool(config.get("chat_template"))


def warnings_of(inputs: Inputs) -> list[str]:
    """What is odd about the inputs but does not stop a build."""
    return merge_warnings(inputs.base, [entry.adapter for entry in inputs.adapters])


def estimate(inputs: Inputs, scheme: Scheme, group_size: int | None) -> Estimates:
    """Predict sizes from the tensors' shapes; see `Estimates`."""
    merged = 0.0
    graph = 0.0
    for name, (count, matrix) in _parameters(inputs.base).items():
        vocabulary = "embed_tokens" in name or "lm_head" in name
        merged += count * (4 if matrix and not vocabulary else 2)
        # The builder keeps the embedding in float32 and quantizes every other matrix.
        quantized = matrix and "embed_tokens" not in name
        graph += count * (scheme.bits_per_weight(group_size) / 8 if quantized else 4)
        if inputs.base.tied and "embed_tokens" in name:
            graph += count * scheme.bits_per_weight(group_size) / 8
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
