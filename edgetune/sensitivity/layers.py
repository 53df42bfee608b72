"""A decoder run from one of its layers on, or through one layer alone.

A layer that is left out gives what it was given, and the one before the first that runs gives the
hidden states that were kept: what stands before it is not computed again. The model is otherwise
itself, so that masks, positions and the head are the family's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from edgetune.reference.render import ScoredItem

Layers = Sequence[Any]


def layers_of(model: Any) -> Layers:
    """The decoder's layers in order."""
    found: Layers = model.get_submodule("model.layers")
    return found


@contextmanager
def running(layers: Layers, first: int, last: int, given: torch.Tensor | None) -> Iterator[None]:
    """Only the layers first…last − 1 compute; `given` [1, tokens, hidden] is what goes into the
    first of them, null where that is the embedding's output."""
    left_out = [*range(first), *range(last, len(layers))]

    def skip(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden

    def give(*_: Any, **__: Any) -> torch.Tensor:
        assert given is not None
        return given

    for number in left_out:
        layers[number].forward = give if number == first - 1 else skip
    try:
        yield
    finally:
        for number in left_out:
            del layers[number].forward


def states_after(
    model: Any,
    items: Sequence[ScoredItem],
    number: int,
    given: Sequence[torch.Tensor | None],
) -> list[torch.Tensor]:
    """What layer `number` gives for each item, [1, tokens, hidden], from what goes into it."""
    layers = layers_of(model)
    return [
        _caught(model, item, number, running(layers, number, number + 1, state))
        for item, state in zip(items, given, strict=True)
    ]


def _caught(model: Any, item: ScoredItem, number: int, block: Any) -> torch.Tensor:
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    hook = layers_of(model)[number].register_forward_hook(keep)
    try:
        with block, torch.inference_mode():
            ids = torch.tensor([[*item.prompt_ids, *item.target_ids[:-1]]])
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return kept[0]


@dataclass
class InputSums:
    """Of what a module is given, over all tokens: `squares`, Σ x², and by group size `errors`, Σ of
    the squared changes where groups of x are rounded to 8 bits; float64 [inputs]."""

    squares: torch.Tensor
    errors: dict[int, torch.Tensor]


@contextmanager
def sums_of_inputs(
    modules: Mapping[str, Any], groups: Sequence[int]
) -> Iterator[dict[str, InputSums]]:
    """The sums of each module's inputs over all tokens that pass in the block."""
    sums: dict[str, InputSums] = {}

    def adder(name: str) -> Callable[[Any, Any], None]:
        def add(_module: Any, inputs: Any) -> None:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1])
            if name not in sums:
                zeros = torch.zeros(flat.shape[1], dtype=torch.float64)
                sums[name] = InputSums(zeros, {group: zeros.clone() for group in groups})
            sums[name].squares += flat.double().square().sum(0)
            for group, total in sums[name].errors.items():
                total += (rounded_to_8_bits(flat, group) - flat).double().square().sum(0)

        return add

    with before_forward({module: adder(name) for name, module in modules.items()}):
        yield sums


@contextmanager
def rounding_inputs(groups: Mapping[Any, int]) -> Iterator[None]:
    """While the block runs modules round what they are given, {module: group size}: as ONNX
    Runtime's product of accuracy level 4 does."""

    def rounder(group: int) -> Callable[[Any, Any], Any]:
        return lambda _module, inputs: (rounded_to_8_bits(inputs[0], group), *inputs[1:])

    with before_forward({module: rounder(group) for module, group in groups.items()}):
        yield


def rounded_to_8_bits(values: torch.Tensor, group: int) -> torch.Tensor:
    """Each group along the last dimension on a symmetric grid of its own, whose ends (±127) are its
    largest magnitude: the blocks of MLAS's int8 product of quantized weights."""
    inputs = values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, -inputs % group)).unflatten(-1, (-1, group))
    scales = padded.abs().amax(-1, keepdim=True) / 127
    whole = (padded / scales.clamp(min=torch.finfo(values.dtype).tiny)).round() * scales
    return whole.flatten(-2)[..., :inputs]


@contextmanager
def before_forward(hooks: Mapping[Any, Callable[[Any, Any], Any]]) -> Iterator[None]:
    """While the block runs modules call these before they compute, {module: hook}."""
    registered = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
