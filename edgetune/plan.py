"""A plan: one recipe for one device, everything resolved, every problem found before work starts.

Pure: no file is written, no model is loaded, no heavy library is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgetune.checkpoint.adapter import PICKLE_FILE, WEIGHTS_FILE, Adapter
from edgetune.checkpoint.combination import merge_problems, merge_warnings
from edgetune.checkpoint.experts import experts_problems
from edgetune.checkpoint.families import unsupported_reason
from edgetune.checkpoint.folder import CheckpointFolder
from edgetune.checkpoint.reshaped import vocabulary_rows
from edgetune.device import Device, is_here
from edgetune.errors import ENVIRONMENT, INPUT_REFUSED, EdgetuneError, PlanError, Problem
from edgetune.estimates import (
    Estimates,
    build_memory_bytes,
    estimate,
    room_problems,
    weight_shapes,
)
from edgetune.files import read_json
from edgetune.host import Host
from edgetune.lengths import LongContext, choose_lengths, layer_weights
from edgetune.optimize.allocation_widths import chosen_rules, smallest_graph_bytes
from edgetune.optimize.forms.decoder import export_problem
from edgetune.optimize.schemes import Scheme, make_widths, parse_scheme, variant_name
from edgetune.optimize.widths import Widths
from edgetune.providers import INT8_CACHE, check_kernels, find_provider
from edgetune.recipe import Recipe
from edgetune.storage import plan_widths, storage_problems

# Of the memory that is free when a build is planned: others will want some.
_HELD = 0.9
_FEWEST_CALIBRATION_ITEMS = 8
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
class Origin:
    """What an input is called: a folder's name; or a hub id, the revision that was asked for, and
    the commit that it was. `license`: what its folder says of it (`sources/license.py`)."""

    name: str
    revision: str | None = None
    commit: str | None = None
    license: Mapping[str, str | None] | None = None

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
    # Whether an item is a chat, which takes a chat template.
    chats: bool = False


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
    # What makes a measurement on the evaluation data weaker than it looks.
    data_warnings: tuple[str, ...] = ()


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
    # Onto what is merged; null while `onto: auto` waits for the reference step's choice.
    onto: str | None = None
    # At which lengths the package is measured beyond short texts; null where no model would change.
    long_context: LongContext | None = None
    # {module: width} as the sensitivities chose them; null with a scheme that leaves no choice, and
    # while `scheme: auto` waits for them.
    chosen: Mapping[str, str] | None = None

    @property
    def merges_onto(self) -> tuple[str, ...]:
        """Onto what the reference step gets a merged checkpoint, the preferred one first."""
        return merges_onto(self.recipe, self.inputs)

    @property
    def identifier(self) -> str:
        """`<recipe>@<device>`, one string for one unit of work."""
        return f"{self.recipe.name}@{self.device.name}"

    @property
    def variant(self) -> str:
        """The variant's folder name in the package, `<provider>-<scheme>`."""
        name = variant_name(self.provider, self.scheme.name, self.group_size)
        name += "-protected" if self.recipe.protect else ""
        return f"{name}-kv8" if self.recipe.kv_cache == "int8" else name

    @property
    def calibrated(self) -> bool:
        """Whether the graph is made with calibration text."""
        return self.scheme.calibrated or self.recipe.kv_cache == "int8"

    @property
    def widths(self) -> Widths:
        """How each module's weight is stored."""
        if self.chosen is not None:
            # The scheme's own width is that of all others.
            rules = chosen_rules(self.chosen)
            return make_widths(self.scheme, self.group_size, rules)
        return _widths(self.recipe, self.scheme, self.group_size, self.inputs)


def _widths(recipe: Recipe, scheme: Scheme, group_size: int | None, inputs: Inputs) -> Widths:
    adapters = (entry.adapter for entry in inputs.adapters)
    return plan_widths(recipe, scheme, group_size, inputs.base, adapters)


def merges_onto(recipe: Recipe, inputs: Inputs) -> tuple[str, ...]:
    """What `onto` means for these inputs: with `auto` both, where there are two; a base that never
    was 4-bit is one, and one that is stored in 4 bits has no original."""
    if recipe.onto != "auto":
        return (recipe.onto,)
    two = recipe.base.trained_as is not None and not inputs.base.packed
    return ("dequantized", "original") if two else ("dequantized",)


def make_plan(
    recipe: Recipe,
    device: Device,
    inputs: Inputs,
    host: Host,
    installed: Mapping[str, str | None],
    free_disk_bytes: int,
    free_memory_bytes: int,
    total_memory_bytes: int | None = None,
) -> Plan:
    """The plan of a recipe for a device. `total_memory_bytes`: what all programs here may take, by
    default the host's memory. Raises PlanError that lists every problem."""
    found = list(problems(recipe, inputs, installed))
    try:
        scheme, group_size = parse_scheme(recipe.scheme, recipe.group_size)
        provider = find_provider(device.providers[0].name).EXECUTION_PROVIDER
        widths = _widths(recipe, scheme, group_size, inputs)
    except EdgetuneError as why:
        found.append(Problem(why.message, why.hint, why.exit_code))
        raise PlanError(found) from why
    memory = host.memory_bytes if total_memory_bytes is None else total_memory_bytes
    long_context = _lengths(inputs, memory, found)
    long_bytes = long_context.bytes if long_context else 0
    layered = build_memory_bytes(inputs.base, long_bytes) > _HELD * free_memory_bytes
    adapted = bool(inputs.adapters)
    onto = merges_onto(recipe, inputs)
    found.extend(storage_problems(recipe, scheme, widths, inputs.base, onto))
    estimates = estimate(
        inputs.base,
        widths,
        adapted=adapted,
        layered=layered,
        merges=len(onto),
        kv_cache=recipe.kv_cache,
        long_bytes=long_bytes,
    )
    found.extend(room_problems(device, estimates, free_disk_bytes))
    if scheme.chooses:
        found.extend(_choice_problems(recipe, scheme, widths, inputs))
    try:
        check_kernels(provider, f"the scheme {scheme.name}", scheme.needs)
        if recipe.kv_cache == "int8":
            check_kernels(provider, "kv_cache: int8", INT8_CACHE)
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
        onto=onto[0] if len(onto) == 1 else None,
        long_context=long_context,
    )


def _lengths(inputs: Inputs, memory_bytes: int, found: list[Problem]) -> LongContext | None:
    base = inputs.base
    try:
        weights = layer_weights(weight_shapes(base))
        return choose_lengths(base.config, weights, memory_bytes)
    except (AttributeError, TypeError, ValueError, ArithmeticError, LookupError) as why:
        reason = f"{base.path}: config.json holds a value of the wrong kind ({why})"
        found.append(Problem(reason, "copy the file again from where it came from", INPUT_REFUSED))
        return None


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
    yield from experts_problems(base.config, str(base.path))
    # An unsupported base is told below, with every other reason why it cannot be merged onto.
    if not unsupported_reason(base.config) and (reason := export_problem(base.config)):
        hint = "this base cannot be exported rightly yet: choose another one"
        yield Problem(f"{base.path}: {reason}", hint, INPUT_REFUSED)
    trained_as = recipe.base.trained_as.model_dump() if recipe.base.trained_as else None
    weighted = [(entry.adapter, entry.weight) for entry in inputs.adapters]
    combine = recipe.combine.model_dump() if recipe.combine else None
    yield from merge_problems(base, weighted, trained_as, recipe.onto, combine)


def _input_problems(inputs: Inputs) -> Iterator[Problem]:
    """What the line would stumble over after the merge, or do without being meant to."""
    place, files = _tokenizer_of(inputs)
    if not {Path(name).name for name in files} & _TOKENIZERS:
        yield Problem(
            f"{place}: no tokenizer (tokenizer.json)",
            "copy the tokenizer's files of the model into the folder",
            INPUT_REFUSED,
        )
    elif inputs.evaluation and inputs.evaluation.chats and not _has_template(place, files):
        yield Problem(
            f"{inputs.evaluation.path}: holds chats, and {place} has no chat template",
            "give `prompt` and `completion` as text, or put chat_template.jinja beside the weights",
        )
    seen: dict[str, AdapterInput] = {}
    for entry in inputs.adapters:
        if entry.weight == 0:
            yield Problem(
                f"{entry.adapter.path}: its weight is 0, so it would change nothing",
                "leave the adapter out, or give it a weight",
            )
        weights = (WEIGHTS_FILE, PICKLE_FILE)
        digest = next(entry.digests[name] for name in weights if name in entry.digests)
        if digest in seen:
            yield Problem(
                f"{entry.adapter.path}: the same weights as {seen[digest].adapter.path}",
                "name it once, with a weight in a recipe",
            )
        seen[digest] = entry


def _choice_problems(
    recipe: Recipe, scheme: Scheme, protected: Widths, inputs: Inputs
) -> Iterator[Problem]:
    """Limits that no choice of widths can meet, and what a choice cannot be made by."""
    base, calibration, tolerances = inputs.base, inputs.calibration, recipe.tolerances
    if calibration is not None and calibration.items < _FEWEST_CALIBRATION_ITEMS:
        yield Problem(
            f"{calibration.path}: calibration data too short: {calibration.items} items, "
            f"{scheme.name} needs at least {_FEWEST_CALIBRATION_ITEMS}",
            "give more items, or leave data.calibration out: text is sampled from the model then",
        )
    compared = bool(inputs.adapters) or inputs.before is not None
    by_retention = tolerances.retention is not None and compared
    if scheme.most_bits is None and tolerances.kl_mean is None and not by_retention:
        yield Problem(
            f"{scheme.name} chooses by tolerances, and neither kl_mean nor retention can be asked",
            "give tolerances.kl_mean, or a number of bits a weight, such as auto-5.5",
        )
    shapes = weight_shapes(base)
    smallest = smallest_graph_bytes(base.config, shapes, base.tied, protected)
    package = smallest + sum((base.path / name).stat().st_size for name in base.side_files)
    budget = recipe.budgets.package_bytes
    if budget is not None and budget < package:
        yield Problem(
            f"budgets.package_bytes is {budget}, and the smallest possible package of this model "
            f"takes about {package} bytes (predicted)",
            "raise the budget, protect less, or choose a smaller base",
        )
    weights = sum(math.prod(shape) for shape in shapes.values())
    if scheme.most_bits is not None and scheme.most_bits * weights / 8 < smallest:
        yield Problem(
            f"{scheme.name}: the smallest possible graph of this model takes "
            f"{math.ceil(800 * smallest / weights) / 100:g} bits a weight (predicted)",
            "ask for more bits",
        )


def _tokenizer_of(inputs: Inputs) -> tuple[Path, tuple[str, ...]]:
    """(folder, files) of the tokenizer that will ship: an adapter's that changed the vocabulary."""
    for adapter in (entry.adapter for entry in inputs.adapters):
        if adapter.tokenizer_files and vocabulary_rows(adapter, inputs.base) is not None:
            return adapter.path, adapter.tokenizer_files
    return inputs.base.path, inputs.base.side_files


def _has_template(folder: Path, files: Sequence[str]) -> bool:
    if any("chat_template" in name for name in files):
        return True
    settings = folder / "tokenizer_config.json"
    config = read_json(settings) if settings.is_file() else None
    return isinstance(config, dict) and bool(config.get("chat_template"))


def warnings_of(inputs: Inputs) -> list[str]:
    """What is odd about the inputs but does not stop a build."""
    found = merge_warnings(inputs.base, [entry.adapter for entry in inputs.adapters])
    return [*found, *inputs.data_warnings]
