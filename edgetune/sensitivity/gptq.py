"""The modules of one layer rounded by GPTQ, for what they are given in float32 of text that KL is
not measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from edgetune.errors import StepFailedError
from edgetune.optimize.gptq.solve import Factors, error_factors, solve
from edgetune.optimize.threads import one_thread
from edgetune.optimize.widths import Width
from edgetune.sensitivity.layers import hessians_of_inputs, states_after
from edgetune.sensitivity.measured import Measurement
from edgetune.sensitivity.rounded import rounded_weight

GPTQ = "gptq"
States = Sequence[torch.Tensor | None]


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


def given_to(
    found: Measurement, number: int, names: Sequence[str], states: States
) -> dict[str, Given]:
    """What modules of layer `number` are given of the text that GPTQ may see; `states`: what goes
    into the layer."""
    modules = {name: found.model.get_submodule(name) for name in names}
    with one_thread(), hessians_of_inputs(modules) as hessians:
        states_after(found.model, found.seen, number, states)
    for name in names:
        if name not in hessians:
            msg = f"{name}: the calibration text does not reach it, and GPTQ needs inputs"
            raise StepFailedError(msg, "choose a scheme that rounds to nearest, such as w4a16-rtn")
    # Modules that are given the same share one.
    shared = {id(hessian): Given(hessian) for hessian in hessians.values()}
    return {name: shared[id(hessian)] for name, hessian in hessians.items()}


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
