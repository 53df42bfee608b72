"""A checkpoint's decoder layers, run one after the other over calibration text, in float32.

Weights stay in their files, mapped; one layer at a time is in memory. What the model does before
its layers is its own code: the layers are asked once what they are given, and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from edgetune.errors import StepFailedError
from edgetune.optimize.threads import side_by_side

Inputs = Callable[[torch.Tensor], torch.Tensor]
# Of texts that are run at once: their activations are in memory.
_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Texts:
    """Calibration texts on their way through the layers.

    Those of one length go together: padding would change sums. `hidden`: of each such batch, what
    the next layer is given, [texts, tokens, hidden]; `keywords`: of each layer and batch, what it
    is given beside that (positions, masks).
    """

    hidden: list[torch.Tensor]
    keywords: list[list[dict[str, Any]]]


class _ReachedError(Exception):
    """The layer has gone as far as was asked for, and this came of it."""

    def __init__(self, made: torch.Tensor) -> None:
        super().__init__()
        self.made = made


def start_texts(
    model: Any,
    texts: Sequence[Sequence[int]],
    embed: Callable[[torch.Tensor], torch.Tensor],
) -> Texts:
    """What the first layer is given for each text of token ids.

    `embed`: token ids [n] to the embedding's rows in float32 [n, hidden]; only those that the texts
    use are asked for.
    """
    used, places = torch.unique(
        torch.tensor([token for text in texts for token in text]), return_inverse=True
    )
    embedding = model.get_input_embeddings()
    before = embedding.weight, embedding.padding_idx
    embedding.weight = torch.nn.Parameter(embed(used), requires_grad=False)
    embedding.padding_idx = None
    layers = model.model.layers
    found = Texts([], [[] for _ in layers])

    def catch(number: int) -> Callable[..., torch.Tensor]:
        def forward(hidden: torch.Tensor, **keywords: Any) -> torch.Tensor:
            if number == 0:
                found.hidden.append(hidden)
            found.keywords[number].append(keywords)
            return hidden

        return forward

    for number, layer in enumerate(layers):
        layer.forward = catch(number)
    try:
        with torch.inference_mode():
            for ids in _batches(places.split([len(text) for text in texts])):
                model.model(input_ids=ids, use_cache=False)
    finally:
        for layer in layers:
            del layer.forward
        embedding.weight, embedding.padding_idx = before
    return found


def _batches(texts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Texts of one length, [texts, tokens], in batches that are not large."""
    by_length: dict[int, list[torch.Tensor]] = {}
    for text in texts:
        by_length.setdefault(len(text), []).append(text)
    for length, alike in sorted(by_length.items()):
        yield from torch.stack(alike).split(max(1, _BATCH_TOKENS // length))


@contextmanager
def in_memory(layer: Any) -> Iterator[None]:
    """A layer whose parameters are float32 copies of its own while the block runs."""
    before = {name: parameter.data for name, parameter in layer.named_parameters()}
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(torch.float32, copy=True)
    try:
        yield
    finally:
        for name, parameter in layer.named_parameters():
            parameter.data = before[name]


def run_layer(layer: Any, texts: Texts, number: int) -> None:
    """Bring the texts behind a layer: its outputs become what the next one is given."""

    def run(batch: int) -> torch.Tensor:
        behind: torch.Tensor = layer(texts.hidden[batch], **texts.keywords[number][batch])
        return behind

    for batch, behind in enumerate(side_by_side(run, range(len(texts.hidden)))):
        texts.hidden[batch] = behind


def stages_of(layer: Any, texts: Texts, number: int) -> list[list[str]]:
    """The layer's linear modules in the order they are called; those that are given the same
    tensor (the projections to queries, keys and values) stand together."""
    stages: list[list[str]] = []
    last: list[torch.Tensor] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: Any, given: tuple[torch.Tensor, ...]) -> None:  # noqa: ARG001
            if not (last and last[0] is given[0]):
                stages.append([])
            last[:] = [given[0]]
            stages[-1].append(name)

        return hook

    hooks = [m.register_forward_pre_hook(note(n)) for n, m in linears(layer).items()]
    try:
        with torch.inference_mode():
            layer(texts.hidden[0], **texts.keywords[number][0])
    finally:
        for hook in hooks:
            hook.remove()
    return stages


def feed(
    layer: Any, texts: Texts, number: int, module: str, make: Inputs, most: int
) -> Iterator[torch.Tensor]:
    """Of each batch in order: what `make` gives of what a linear module of the layer is given,
    [tokens, inputs]. The layer is run no further than to that module; `most` results are held."""

    def hook(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        raise _ReachedError(make(given[0].flatten(0, -2)))

    def run(batch: int) -> torch.Tensor:
        try:
            layer(texts.hidden[batch], **texts.keywords[number][batch])
        except _ReachedError as reached:
            return reached.made
        msg = f"layer {number} ended before {module}"
        raise StepFailedError(msg, "this is an error in edgetune; please report it")

    registered = layer.get_submodule(module).register_forward_pre_hook(hook)
    try:
        yield from side_by_side(run, range(len(texts.hidden)), most)
    finally:
        registered.remove()


def linears(layer: Any) -> dict[str, torch.nn.Linear]:
    """The layer's linear modules by their names in it."""
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
