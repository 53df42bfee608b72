"""Allocations of the greedy path, quantized as a whole: what adding up is worth.

Where the graph will be rounded by GPTQ, so are these: each layer for what the rounded layers before
it give on text that KL is not measured on. Within a layer all modules are rounded at once, for what
they are given in float32, where the pass itself goes from module to module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edgetune.optimize.allocation import Allocation, Option, make_path
from edgetune.optimize.allocation_widths import MEASURED, beside_others, in_layers
from edgetune.optimize.gptq.layers import Texts, run_layer
from edgetune.optimize.threads import side_by_side
from edgetune.optimize.widths import FLOAT, Width, parse_width
from edgetune.sensitivity.gptq import GPTQ, given_to, seen_texts, solved_weight
from edgetune.sensitivity.layers import layers_of, states_after
from edgetune.sensitivity.measured import Measurement, digits, layer_of
from edgetune.sensitivity.rounded import rounded_weight

Progress = Callable[[str], None]

# Of the largest sum of KL: where allocations are measured as a whole. GPTQ takes its time.
_SHARES, _SHARES_OF_GPTQ = (1.0, 0.3, 0.1, 0.03, 0.01), (0.1, 0.01)

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def share_beside_others(found: Measurement, options: Rows, progress: Progress) -> float:
    """What the layers' modules cost together, all at `MEASURED`, as a share of the sum of what they
    cost alone; 1 where nothing makes up for anything.

    GPTQ rounds each module for what the rounded ones before it give, and so makes up for part of
    their errors; for the head's and the embedding's nothing does.
    """
    if found.algorithm != GPTQ:
        return 1.0
    chosen = {}
    for name, rows in options.items():
        wanted = MEASURED if in_layers(name) else FLOAT.name
        row = next((row for row in rows if row["width"] == wanted), rows[-1])
        chosen[name] = Option(row["width"], row["bytes"], row["kl"])
    allocation = Allocation(chosen)
    progress("all layers as a whole")
    return digits(_together(found, allocation) / allocation.kl) if allocation.kl > 0 else 1.0


def measure_joint(
    found: Measurement, options: Rows, share: float, progress: Progress
) -> list[dict[str, float]]:
    """[{added: the sum of what the modules cost, by `share_beside_others`, kl: what they cost
    together}]."""
    path = make_path(
        {
            name: [
                Option(row["width"], row["bytes"], beside_others(name, row["kl"], share))
                for row in rows
            ]
            for name, rows in options.items()
        }
    )
    most = path[0].kl
    chosen: dict[float, Allocation] = {}
    for part in _SHARES_OF_GPTQ if found.algorithm == GPTQ else _SHARES:
        nearest = next((a for a in path if a.kl <= part * most), path[-1])
        if nearest.kl > 0:
            chosen[nearest.kl] = nearest
    rows = []
    for number, allocation in enumerate(chosen.values(), 1):
        progress(f"allocation {number} of {len(chosen)} as a whole")
        rows.append({"added": allocation.kl, "kl": digits(_together(found, allocation))})
    return rows


def _together(found: Measurement, allocation: Allocation) -> float:
    """KL of the model with every module at its width, one layer quantized at a time."""
    model = found.model
    widths = {name: parse_width(w, found.default) for name, w in allocation.widths.items()}
    given: Sequence[torch.Tensor | None] = [None] * len(found.items)
    # The embeddings and the head are quantized all along, a layer while it runs.
    outer = {name: width for name, width in widths.items() if layer_of(name) < 0}
    with _replaced(model, _nearest(model, outer)), found.rounding(outer):
        texts = seen_texts(found) if found.algorithm == GPTQ else None
        for number in range(len(found.states)):
            own = {name: width for name, width in widths.items() if layer_of(name) == number}
            rounded = _nearest(model, own)
            if texts and any(width.quantized for width in own.values()):
                rounded = _solved(found, number, own, texts)
            with _replaced(model, rounded), found.rounding(own):
                given = states_after(model, found.items, number, given)
                if texts:
                    run_layer(layers_of(model)[number], texts, number)
        return found.kl_from(len(found.states), given)


def _nearest(model: Any, widths: Mapping[str, Width]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, width in widths.items():
        yield name, rounded_weight(name, model.get_submodule(name).weight.data, width)


def _solved(
    found: Measurement, number: int, widths: Mapping[str, Width], texts: Texts
) -> Iterator[tuple[str, torch.Tensor]]:
    """The layer's weights by GPTQ, for what its modules are given of the text that it may see."""
    given, _ = given_to(found, number, list(widths), texts)
    for name, width in widths.items():
        if width.quantized:
            given[name].of(width)  # once, not in each of the threads

    def solve_one(name: str) -> torch.Tensor:
        weight = found.model.get_submodule(name).weight.data
        return solved_weight(weight, given[name], widths[name])

    return zip(widths, list(side_by_side(solve_one, widths)), strict=True)


@contextmanager
def _replaced(model: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[None]:
    """The model with these weights, while the block runs."""
    before = {}
    try:
        for name, weight in weights:
            module = model.get_submodule(name)
            before[name] = module.weight.data
            module.weight.data = weight
        yield
    finally:
        for name, weight in before.items():
            model.get_submodule(name).weight.data = weight
