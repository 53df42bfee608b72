"""Where PEFT would put an adapter, without putting it there.

PEFT matches a config's targets against the base's modules and makes a layer for each one. Here it
does the matching, and each layer that it would make is noted instead: the base stays a model on the
meta device that costs no memory, whatever the adapter's type makes beside its weights. `unit.py`
then lets PEFT make the layers, one at a time, on real values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from edgetune.checkpoint.adapter import Adapter
from edgetune.checkpoint.adapter_fields import known_fields

Load = Callable[[str], torch.Tensor]  # a tensor of the base by its name, in float32


@dataclass(frozen=True)
class Place:
    """A module that PEFT would give a layer to, and the rest of what it would make it from."""

    module: str
    skeleton: Any
    options: Mapping[str, Any]


def peft_config(adapter: Adapter) -> Any:
    """The adapter's config as PEFT's class, without an initialization that wants training data.

    Nor does it name its base: PEFT would look for that one's vocabulary size, on the hub if need
    be.

    Raises what PEFT raises for values that it refuses.
    """
    from peft import PeftConfig

    fields = known_fields(adapter.config)
    # a virtual base holds the replicated layers already
    fields.pop("layer_replication", None)
    if adapter.peft_type in ("LORA", "ADALORA"):
        fields["init_lora_weights"] = False
    return PeftConfig.from_peft_type(peft_type=adapter.peft_type, inference_mode=True, **fields)


def note_places(model: Any, name: str, adapter: Adapter, load: Load) -> tuple[Any, list[Place]]:
    """(PEFT's model around the bare base `model`, the places of the adapter's layers in order).

    `load` reads tensors of the base, for the one type whose preparation looks at all of them.
    Raises what PEFT raises for a config that it refuses on this base.
    """
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    places: list[Place] = []

    def note(
        tuner: Any, config: Any, name: str, target: Any, leaf: str, parent: Any, current_key: str,
        **options: Any,
    ) -> None:  # fmt: skip
        del tuner, config, name, leaf, parent
        parameter = options.get("parameter_name")
        module = current_key.removesuffix(f".{parameter}") if parameter else current_key
        places.append(Place(module, target, {"current_key": current_key, **options}))

    config = peft_config(adapter)
    with _replaced(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], note):
        if adapter.peft_type == "FROD":
            with _real_linears(model, load):
                return get_peft_model(model, config, name), places
        peft = get_peft_model(model, config, name)
        if adapter.peft_type == "VBLORA":  # otherwise made with the first layer
            peft.base_model._init_vblora_vector_bank(config, name)
        return peft, places


def shared_indices(peft: Any, name: str, places: Sequence[Place]) -> dict[str, dict[str, Any]]:
    """Uni-LoRA's positions and scales by module: PEFT deals them out over all layers at once."""
    rank = peft.peft_config[name].r
    buffers: dict[str, dict[str, Any]] = {}
    layers = []
    for place in places:
        rows, columns = place.skeleton.weight.shape
        made = {
            "unilora_indices_A": {name: torch.empty(rank, columns, device="meta")},
            "unilora_indices_B": {name: torch.empty(rows, rank, device="meta")},
        }

        def keep(_: str, a: Any, b: Any, made: dict[str, Any] = made) -> None:
            made |= {"unilora_scales_A": {name: a}, "unilora_scales_B": {name: b}}

        layers.append(SimpleNamespace(**made, update_scaling=keep))
        buffers[place.module] = made
    peft.base_model._iter_unilora_layers = lambda: iter(layers)
    peft.base_model._assign_unilora_indices_and_scales(name)
    return buffers


@contextlib.contextmanager
def _replaced(tuner: Any, function: Any) -> Iterator[None]:
    """Put `function` in the place of the tuner's own way of making layers, for a block."""
    own = vars(tuner).get("_create_and_replace")
    tuner._create_and_replace = function
    try:
        yield
    finally:
        if own is None:
            del tuner._create_and_replace
        else:
            tuner._create_and_replace = own


@contextlib.contextmanager
def _real_linears(model: Any, load: Load) -> Iterator[None]:
    """FRoD decomposes the layers of a kind together: their weights must be there for it."""
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    kept = [module.weight for _, module in linears]
    for name, module in linears:
        if name != "lm_head":
            module.weight = torch.nn.Parameter(load(f"{name}.weight"), requires_grad=False)
    try:
        yield
    finally:
        for (_, module), weight in zip(linears, kept, strict=True):
            module.weight = weight
