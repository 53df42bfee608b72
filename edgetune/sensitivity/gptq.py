"""The modules of one layer rounded by GPTQ, for what they are given in float32 of text that KL is
not measured on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from edgetune.errors import StepFailedError
from edgetune.optimize.gptq.layers import Texts, start_texts
from edgetune.optimize.gptq.solve import Factors, error_factors, solve
from edgetune.optimize.threads import one_thread, side_by_side
from edgetune.optimize.widths import Width
from edgetune.sensitivity.layers import before_forward, layers_of
from edgetune.sensitivity.measured import Measurement
from edgetune.sensitivity.rounded import rounded_weight

GPTQ = "gptq"
# Of sums over a batch, float32 [inputs, inputs] of a few modules, that wait to be added up.
_WAITING_BYTES = 512 << 20


@dataclass(frozen=True)
class Given:
    """What a module is given: Σ x·xᵀ, float32 [inputs, inputs], and what `solve` takes of it by
    group size, made when it is first asked for."""

    hessian: torch.Tensor
    factors: dict[int, Factors] = field(default_factory=dict)

    def of(self, width: Width) -> Factors:
        """What `solve` takes for a quantized width."""
        size = width.group_size or 0
        if size not in self.factors:
            with one_thread():
                self.factors[size] = error_factors(self.hessian, size)
        return self.factors[size]


def seen_texts(found: Measurement) -> Texts:
    """The text that GPTQ may see, as the first layer of the model, as it is now, is given it."""
    texts = [[*item.prompt_ids, *item.target_ids[:-1]] for item in found.seen]
    embedding = found.model.get_input_embeddings().weight.data
    with one_thread():
        return start_texts(found.model, texts, lambda tokens: embedding[tokens])


def given_to(
    found: Measurement, number: int, names: Sequence[str], texts: Texts
) -> tuple[dict[str, Given], list[torch.Tensor]]:
    """(what modules of layer `number` are given of these texts, what the layer gives of each batch
    of them); `texts`: as they stand before the layer. Sums do not depend on the number of cores."""
    layer = layers_of(found.model)[number]
    own = threading.local()  # what a thread has seen of its batch

    def adder(name: str) -> Callable[[Any, Any], None]:
        def add(_module: Any, inputs: Any) -> None:
            if own.last is not inputs[0]:
                flat = inputs[0].flatten(0, -2)
                own.last, own.sum = inputs[0], flat.T @ flat
            own.sums[name] = own.sum

        return add

    def run(batch: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        own.last, own.sums = None, {}
        behind = layer(texts.hidden[batch], **texts.keywords[number][batch])
        return own.sums, behind

    modules = {name: found.model.get_submodule(name) for name in names}
    largest = max(4 * module.in_features**2 for module in modules.values())
    totals: dict[str, torch.Tensor] = {}
    behind = []
    with before_forward({module: adder(name) for name, module in modules.items()}):
        batches = range(len(texts.hidden))
        for sums, given in side_by_side(run, batches, max(1, _WAITING_BYTES // (4 * largest))):
            behind.append(given)
            _add(totals, sums)
    for name in names:
        if name not in totals:
            msg = f"{name}: the calibration text does not reach it, and GPTQ needs inputs"
            raise StepFailedError(msg, "choose a scheme that rounds to nearest, such as w4a16-rtn")
    # Modules that are given the same share one.
    shared = {id(total): Given(total) for total in totals.values()}
    return {name: shared[id(totals[name])] for name in names}, behind


def _add(totals: dict[str, torch.Tensor], sums: Mapping[str, torch.Tensor]) -> None:
    """Modules that share a sum share the total."""
    if not totals:
        totals.update(sums)
        return
    done = set()
    for name, part in sums.items():
        if id(part) not in done:
            done.add(id(part))
            with torch.inference_mode():  # as what it is added to
                totals[name] += part


def solved_weight(weight: torch.Tensor, given: Given, width: Width) -> torch.Tensor:
    """float32 [outputs, inputs]; the weight itself for a float width."""
    if not width.quantized:
        return weight
    with one_thread():
        return solve(weight, given.of(width), width).values(width)


def share_of_noise(
    module: str, weight: torch.Tensor, given: Given, width: Width, solved: torch.Tensor
) -> float:
    """How much of the squared error of rounding to nearest GPTQ, which made `solved`, leaves in the
    outputs."""

    def energy(rounded: torch.Tensor) -> float:
        error = rounded - weight
        return float(((error @ given.hessian) * error).sum(dtype=torch.float64))

    with one_thread():
        nearest = energy(rounded_weight(module, weight, width))
        return energy(solved) / nearest if nearest > 0 else 1.0
