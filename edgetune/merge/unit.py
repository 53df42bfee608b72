"""A module merged whole by PEFT's own layer, for every adapter type but plain LoRA and DoRA.

For each module in turn the base's values are loaded, PEFT makes its layer on them as it does when
a user loads the adapter (some types derive parts of the adapter from the base's weight), the
adapter's tensors are loaded into it, it merges, and all is let go again: memory is constant in the
model's depth. A tensor that PEFT would not save for this layer, or would miss, is refused.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

from edgetune.checkpoint.adapter import PREFIX, WEIGHTS_FILE
from edgetune.checkpoint.skeleton import quiet
from edgetune.checkpoint.tensors import is_finite
from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.merge.injection import Place
from edgetune.merge.ledger import Ledger, Source

_WRONG_BASE = "name the base that this adapter was trained on"
Weights = Callable[[str], torch.Tensor]  # leaf name → the base's values as the adapter saw them


@dataclass(frozen=True)
class Unit:
    """A module with its adapter: places in PEFT's order, and the file's tensors by name.

    `name` is what PEFT's model calls the adapter. `shared` tensors belong to all modules of the
    adapter; `buffers` are what PEFT deals out over all.
    """

    name: str
    path: Path
    module: str
    places: tuple[Place, ...]
    peft: Any
    tensors: Mapping[str, Source]
    shared: Mapping[str, Source]
    buffers: Mapping[str, Mapping[str, Any]]
    ledger: Ledger

    @property
    def leaves(self) -> dict[str, tuple[int, ...]]:
        """The module's own parameters and their shapes in the model."""
        named = self.places[0].skeleton.named_parameters()
        return {leaf: tuple(parameter.shape) for leaf, parameter in named}

    def stored(self, leaf: str) -> Source | None:
        """The adapter's own tensor for a parameter of the base, if it brings one."""
        return self.tensors.get(f"{PREFIX}{self.module}.base_layer.{leaf}")


@dataclass
class Merger:
    """Merges units and keeps the last one's parameters, which are asked for one after another (of
    a mixture of experts in many pieces)."""

    module: str = ""
    held: dict[str, torch.Tensor] = field(default_factory=dict)

    def leaf(self, unit: Unit, leaf: str, weights: Weights) -> torch.Tensor:
        """One merged parameter of a unit."""
        if self.module != unit.module:
            self.held.clear()
            self.module, self.held = unit.module, merged_parameters(unit, weights)
        return self.held[leaf]


def merged_parameters(unit: Unit, weights: Weights) -> dict[str, torch.Tensor]:
    """The unit's merged parameters by leaf name, float32.

    Raises InputRefusedError naming tensor or module: tensors that do not fit, a merge that PEFT
    refuses, a result that is not finite.
    """
    from peft.utils import _get_submodules

    tuner = unit.peft.base_model
    fresh = _filled(unit, weights)
    parent, skeleton, leaf = _get_submodules(tuner.model, unit.module)
    setattr(parent, leaf, fresh)
    # positions from the file index memory: torch checks those of sparse tensors only when asked
    checked = torch.sparse.check_sparse_tensor_invariants(enable=True)
    try:
        with quiet(), torch.no_grad(), checked, _own_ranks(unit):
            _make(unit, parent, leaf)
            layer = getattr(parent, leaf)
            if layer is fresh:
                msg = f"{unit.module}: PEFT puts no layer of this adapter there"
                raise InputRefusedError(msg, _WRONG_BASE)
            _load(unit)
            return _merge(unit, layer.eval())  # some types drop parts at random while training
    finally:
        setattr(parent, leaf, skeleton)


def _filled(unit: Unit, weights: Weights) -> Any:
    """The bare module on the CPU with the base's values, or those that the adapter brings."""
    fresh = copy.deepcopy(unit.places[0].skeleton)
    for leaf in unit.leaves:
        own = unit.stored(leaf)
        value = unit.ledger.load(own) if own else weights(leaf)
        owner, _, last = leaf.rpartition(".")
        setattr(fresh.get_submodule(owner), last, Parameter(value, requires_grad=False))
    return fresh


@contextlib.contextmanager
def _own_ranks(unit: Unit) -> Iterator[None]:
    """AdaLoRA's ranks of this module alone: PEFT would look for the layers of all others."""
    config = unit.peft.peft_config[unit.name]
    whole = getattr(config, "rank_pattern", None)
    if config.peft_type == "ADALORA" and whole:
        own = {key: kept for key, kept in whole.items() if key.startswith(f"{unit.module}.")}
        config.rank_pattern = own or None
    try:
        yield
    finally:
        if config.peft_type == "ADALORA":
            config.rank_pattern = whole


def _make(unit: Unit, parent: Any, leaf: str) -> None:
    """Let PEFT make its layers on the module, one inside the other where there are several."""
    name = unit.name
    tuner = unit.peft.base_model
    config = unit.peft.peft_config[name]
    try:
        for place in unit.places:
            target = getattr(parent, leaf)
            tuner._create_and_replace(config, name, target, leaf, parent, **place.options)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError) as why:
        raise _refused(unit, why) from why
    for attribute, value in unit.buffers.get(unit.module, {}).items():
        getattr(getattr(parent, leaf), attribute)[name] = value[name]


def _load(unit: Unit) -> None:
    """Load the file's tensors as PEFT does, and prove that each found its place."""
    from peft import get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    name, prefix = unit.name, f"{PREFIX}{unit.module}."
    peft, config = unit.peft, unit.peft.peft_config[name]
    expected = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
    whole = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=True)
    for key in sorted(expected):
        own = key.startswith(prefix) or not key.startswith(PREFIX)
        if own and key not in unit.tensors and key not in unit.shared:
            raise _misfit(unit, key, "is missing")
    for key in sorted(unit.tensors):
        if key not in whole:
            raise _misfit(unit, key, "belongs to nothing that its config names")
    filled = {f"{prefix}base_layer.{leaf}" for leaf in unit.leaves}
    tensors = {k: unit.ledger.load(s) for k, s in unit.tensors.items() if k not in filled}
    shared = {key: unit.ledger.load(source, note=False) for key, source in unit.shared.items()}
    try:
        mapped = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]._remap_adapter_state_dict_for_load(
            model=peft, config=config, adapter_name=name, state_dict={**tensors, **shared}
        )
        told = peft.load_state_dict(mapped, strict=False)
    except (ValueError, RuntimeError, KeyError, IndexError) as why:
        raise _refused(unit, why) from why
    strange = {key for key in told.unexpected_keys if key.startswith(prefix)}
    if strange:
        raise _misfit(unit, min(strange), "went nowhere when PEFT loaded it")
    left = [key.replace(f".{name}", "") for key in told.unexpected_keys]
    for key, source in unit.shared.items():
        if key not in left:
            unit.ledger.note(source)


def _merge(unit: Unit, layer: Any) -> dict[str, torch.Tensor]:
    """Call PEFT's merge from the outermost layer inwards; the base module's parameters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    held = [n for n, p in layer.named_parameters() if p.device.type == "meta"]
    if held:
        msg = f"{unit.module}: {held[0]} got no values before the merge"
        raise StepFailedError(msg, "this is an error in edgetune; please report it")
    while isinstance(layer, BaseTunerLayer):
        layer.merged_adapters = []
        try:
            layer.merge(safe_merge=True)
        except (ValueError, NotImplementedError, RuntimeError) as why:
            raise _refused(unit, why) from why
        if layer.merged_adapters != [unit.name]:
            msg = f"{unit.module}: PEFT merged nothing of the adapter"
            raise StepFailedError(msg, "this is an error in edgetune; please report it")
        layer = layer.base_layer
    merged = {leaf: parameter.detach() for leaf, parameter in layer.named_parameters()}
    for leaf, parameter in merged.items():
        if not is_finite(parameter):
            msg = f"{unit.module}: the merged {leaf} is not finite"
            raise InputRefusedError(msg, "the adapter is broken: save it again, or train again")
    return merged


def _misfit(unit: Unit, key: str, text: str) -> InputRefusedError:
    msg = f"{unit.path / WEIGHTS_FILE}: tensor {key!r} {text}"
    hint = "save the adapter again with PEFT's save_pretrained" if "missing" in text else ""
    return InputRefusedError(msg, hint or _WRONG_BASE)


def _refused(unit: Unit, why: BaseException) -> InputRefusedError:
    text = " ".join(str(why).split())[:300]
    msg = f"{unit.path}: PEFT refuses it on {unit.module} ({text})"
    return InputRefusedError(msg, _WRONG_BASE)
