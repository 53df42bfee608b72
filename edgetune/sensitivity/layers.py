"""A decoder run from one of its layers on, or through one layer alone.

A layer that is left out gives what it was given, and the one before the first that runs gives the
hidden states that were kept: what stands before it is not computed again. The model is otherwise
itself, so that masks, positions and the head are the family's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def squares_of_inputs(modules: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Σ x² of each module's inputs over all tokens that pass in the block, float64 [inputs]."""
    sums: dict[str, torch.Tensor] = {}

    def adder(name: str) -> Callable[[Any, Any], None]:
        def add(_module: Any, inputs: Any) -> None:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, torch.zeros(flat.shape[1])) + flat.square().sum(0)

        return add

    hooks = [m.register_forward_pre_hook(adder(name)) for name, m in modules.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
