"""The sensitivity step: KL(merged ‖ one module quantized, the rest in float32), for every module.

Measured at `w4-g32` and at `w8-g32`, from the module's own layer on: what stands before it is kept.
A tied embedding, which is a lookup and a product, is measured at all widths. At the other widths KL
is predicted: it grows with the squared error of the module's output (KL is quadratic in small
errors, and those of rounding are as good as independent), which follows from the weights and sums
over the inputs. Products that round their inputs to 8 bits inside, in groups as large as the
weight's, do so here too, and modules are rounded as the graph's will be: by GPTQ, if the scheme
does. What they cost together is measured of some allocations as a whole (`sensitivity.joint`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checkpoint.trained import load_plain
from edgetune.files import dump_json, write_text
from edgetune.optimize.allocation_widths import (
    EMBEDDING_MODULE,
    GROUPS,
    HEAD_MODULE,
    MEASURED,
    MEASURED_8,
    fixed_bytes,
    module_shapes,
    offered,
)
from edgetune.optimize.threads import side_by_side
from edgetune.optimize.widths import FLOAT, Width, parse_width
from edgetune.reference.measure import deterministic, threads_for, write_logits
from edgetune.reference.survival_worker import with_weight
from edgetune.sensitivity import RESULT
from edgetune.sensitivity.gptq import (
    GPTQ,
    Given,
    given_to,
    seen_texts,
    share_of_noise,
    solved_weight,
)
from edgetune.sensitivity.joint import measure_joint, share_beside_others
from edgetune.sensitivity.layers import InputSums, layers_of, states_after, sums_of_inputs
from edgetune.sensitivity.measured import Measurement, digits, layer_of
from edgetune.sensitivity.rounded import noise_energy, rounded_weight
from edgetune.sensitivity.text import CalibrationText, calibration_text

Progress = Callable[[str], None]

# The accuracy level of ONNX Runtime's products that round what they are given to 8 bits.
_ROUNDS_INPUTS = 4


def sensitivity_step(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """Write `sensitivity.json` into `out`: {modules: [{name, outputs, inputs, options: [{width,
    bytes, kl, how}]}], share_beside_others (of `joint`), joint: [{added, kl}], measured_at, source,
    items, positions, fixed_bytes, parameters}; `how`: measured or predicted.

    arguments: checkpoint (the merged folder), calibration (JSON lines or null), task, default (the
    scheme's own width: {bits, group_size, algorithm, symmetric, scale_bits}), accuracy_level (of
    the scheme's products), seed, threads, layered (the model does not fit the memory; changes no
    result). Facts: modules, items, positions, source, measured_at. Raises UsageError for
    calibration data that is too short.
    """
    checkpoint = Path(arguments["checkpoint"])
    merged = read_checkpoint(checkpoint)
    tensors = {name: entry.shape for name, entry in merged.tensors.items()}
    shapes = module_shapes(tensors, merged.tied)
    progress("loading the merged model in torch")
    scratch = out if arguments.get("layered") else None
    model = load_plain(checkpoint, torch.float32, scratch)
    with deterministic(threads_for(checkpoint, int(arguments["threads"]))):
        given = arguments["calibration"]
        text = calibration_text(
            model,
            checkpoint,
            Path(given) if given else None,
            arguments["task"],
            int(arguments["seed"]),
            len(shapes),
            progress,
        )
        logits = out / "logits.npy"
        with write_logits(model, text.items, logits, "merged model", progress):
            trained = np.load(logits, mmap_mode="r", allow_pickle=False)
            found = _in_float(model, text, trained, shapes, arguments, progress)
            options = _options(found, shapes, merged.tied, text.both, progress)
            share = share_beside_others(found, options, progress)
            joint = measure_joint(found, options, share, progress)
        logits.unlink()
    value = {
        "measured_at": MEASURED,
        "source": text.source,
        "items": len(text.items),
        "positions": found.positions,
        "parameters": sum(math.prod(shape) for shape in tensors.values()),
        "fixed_bytes": fixed_bytes(merged.config, tensors, merged.tied),
        "modules": [
            {"name": name, "outputs": shapes[name][0], "inputs": shapes[name][1], "options": rows}
            for name, rows in options.items()
        ],
        "share_beside_others": share,
        "joint": joint,
    }
    write_text(out / RESULT, dump_json(value))
    return {key: value[key] for key in ("source", "items", "positions", "measured_at")} | {
        "modules": len(shapes)
    }


def _in_float(
    model: Any,
    text: CalibrationText,
    trained: NDArray[np.float32],
    shapes: Mapping[str, tuple[int, int]],
    arguments: Mapping[str, Any],
    progress: Progress,
) -> Measurement:
    """What each layer gives in float32, and the sums of what goes into each module."""
    items = text.items
    counts = [item.positions for item in items]
    ends = np.cumsum(counts)
    rows = tuple(slice(int(e) - n, int(e)) for e, n in zip(ends, counts, strict=True))
    modules = {name: model.get_submodule(name) for name in shapes}
    states: list[list[torch.Tensor]] = []
    products = {n: m for n, m in modules.items() if n not in (HEAD_MODULE, EMBEDDING_MODULE)}
    rounds_inputs = arguments["accuracy_level"] == _ROUNDS_INPUTS
    groups = GROUPS if rounds_inputs else ()
    with sums_of_inputs(products, groups) as sums:
        before: Sequence[torch.Tensor | None] = [None] * len(items)
        for number in range(len(layers_of(model))):
            progress(f"in float32: layer {number + 1}")
            states.append(states_after(model, items, number, before))
            before = states[-1]
    default = Width(**arguments["default"])
    found = Measurement(
        model,
        items,
        rows,
        trained,
        states,
        sums,
        rounds_inputs,
        replace(default, algorithm="rtn"),
        str(default.algorithm),
        text.rest,
    )
    with sums_of_inputs({HEAD_MODULE: modules[HEAD_MODULE]}, groups) as of_head:
        found.kl_from(len(states), states[-1])
    sums.update(of_head)
    if EMBEDDING_MODULE in shapes:
        # Looked up, not multiplied: the error of a row is that of what it gives.
        ones = torch.ones(shapes[EMBEDDING_MODULE][1], dtype=torch.float64)
        sums[EMBEDDING_MODULE] = InputSums(ones, {})
    return found


def _options(
    found: Measurement,
    shapes: Mapping[str, tuple[int, int]],
    tied: bool,
    both_widths: bool,
    progress: Progress,
) -> dict[str, list[dict[str, Any]]]:
    """{module: its options}."""
    options: dict[str, list[dict[str, Any]]] = {}
    texts = seen_texts(found) if found.algorithm == GPTQ else None
    for number, names in groupby(sorted(shapes, key=layer_of), layer_of):
        given: Mapping[str, Given] = {}
        own = list(names)
        if number >= 0 and texts:
            given, texts.hidden[:] = given_to(found, number, own, texts)
        for name in own:
            progress(f"module {len(options) + 1} of {len(shapes)} alone")
            both = tied and name == HEAD_MODULE
            known = _to_measure(name, both, both_widths)
            options[name] = _rows(found, name, shapes[name], given.get(name), known, both=both)
    return {name: options[name] for name in shapes}


def _to_measure(name: str, both: bool, both_widths: bool) -> list[str]:
    """The widths that a module is measured at; `both`: it is the embedding and the head."""
    if both:
        return [words for words in offered(name) if words != FLOAT.name]
    if name == EMBEDDING_MODULE:
        return [MEASURED_8]
    return [MEASURED, MEASURED_8] if both_widths else [MEASURED]


def _rows(
    found: Measurement,
    name: str,
    shape: tuple[int, int],
    given: Given | None,
    known: Sequence[str],
    *,
    both: bool,
) -> list[dict[str, Any]]:
    """The options of a module: what is measured of it, at the widths `known`, and what follows from
    its noise. `given`: what GPTQ rounds it for; `both`: it is the embedding and the head."""
    weight = found.model.get_submodule(name).weight.data
    widths = {words: parse_width(words, found.default) for words in offered(name)}
    measured, share = {}, 1.0
    for words, rounded in zip(known, _rounded(name, weight, known, widths, given), strict=True):
        measured[words] = _alone(found, name, widths[words], rounded, both)
        if given is not None and words == MEASURED:
            share = share_of_noise(name, weight, given, widths[words], rounded)

    def noise(words: str) -> float:
        return noise_energy(name, weight, widths[words], found.sums[name], share)

    own = {words: noise(words) for words in (MEASURED, MEASURED_8) if words in measured}

    def cost(words: str) -> float:
        if words in measured or not widths[words].quantized:
            return measured.get(words, 0.0)
        # Where 4 bits cost much, they say little of 8.
        eight = widths[words].bits == 8 and MEASURED_8 in measured
        near = MEASURED_8 if eight or MEASURED not in measured else MEASURED
        return measured[near] * noise(words) / own[near] if own[near] else 0.0

    return [
        {
            "width": words,
            "bytes": width.stored(*shape).total,
            "kl": digits(cost(words)),
            "how": "measured" if words in measured or not width.quantized else "predicted",
        }
        for words, width in widths.items()
    ]


def _rounded(
    name: str,
    weight: torch.Tensor,
    known: Sequence[str],
    widths: Mapping[str, Width],
    given: Given | None,
) -> Iterable[torch.Tensor]:
    """The module's weight as each of these widths rounds it, float32 [outputs, inputs]."""
    if given is None:
        return (rounded_weight(name, weight, widths[words]) for words in known)
    for words in known:
        given.of(widths[words])  # once, not in each of the threads
    return list(side_by_side(lambda words: solved_weight(weight, given, widths[words]), known))


def _alone(found: Measurement, name: str, width: Width, rounded: torch.Tensor, both: bool) -> float:
    """KL of the model with this module alone quantized."""
    module = found.model.get_submodule(name)
    layer = layer_of(name)
    looked_up = both or name == EMBEDDING_MODULE
    first = layer if layer >= 0 else (0 if looked_up else len(found.states))
    with found.rounding({name: width}):
        (kl,) = with_weight(module, rounded, lambda: [found.kl_from(first, found.before(first))])
    return kl
