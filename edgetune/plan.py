"""A plan: one recipe for one device, everything resolved, every problem found before work starts.

Pure: no file is written, no model is loaded, no heavy library is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetune.device import Device, is_here
from edgetune.errors import INPUT_REFUSED, EdgetuneError, PlanError, Problem
from edgetune.estimates import (
    Estimates,
    build_memory_bytes,
    estimate,
    room_problems,
    weight_shapes,
)
from edgetune.host import Host
from edgetune.inputs import Inputs
from edgetune.lengths import SLIDING, LongContext, choose_lengths, layer_weights, thresholds
from edgetune.optimize.allocation_widths import chosen_rules
from edgetune.optimize.schemes import Scheme, make_widths, parse_scheme, variant_name
from edgetune.optimize.widths import Widths
from edgetune.problems import choice_problems, problems
from edgetune.providers import INT8_CACHE, check_kernels, find_provider
from edgetune.recipe import Recipe
from edgetune.storage import plan_widths, storage_problems

# Of the memory that is free when a build is planned: others will want some.
_HELD = 0.9


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
        found.extend(choice_problems(recipe, scheme, widths, inputs))
    try:
        check_kernels(provider, f"the scheme {scheme.name}", scheme.needs)
        if recipe.kv_cache == "int8":
            check_kernels(provider, "kv_cache: int8", INT8_CACHE)
            if long_context and any(what == SLIDING for what, _ in thresholds(inputs.base.config)):
                found.append(_no_window_in_8_bits(inputs.base.path))
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


def _no_window_in_8_bits(base: Path) -> Problem:
    """The buffer of such a cache is not shared between steps, and ONNX Runtime's attention wants a
    sliding window's whole capacity in it from the first token on."""
    msg = f"{base}: kv_cache: int8 does not run where attention has a sliding window"
    return Problem(msg, "leave kv_cache out: a window bounds the cache already")


def _lengths(inputs: Inputs, memory_bytes: int, found: list[Problem]) -> LongContext | None:
    base = inputs.base
    try:
        weights = layer_weights(weight_shapes(base))
        return choose_lengths(base.config, weights, memory_bytes)
    except (AttributeError, TypeError, ValueError, ArithmeticError, LookupError) as why:
        reason = f"{base.path}: config.json holds a value of the wrong kind ({why})"
        found.append(Problem(reason, "copy the file again from where it came from", INPUT_REFUSED))
        return None
