"""The base with its adapters on the meta device: PEFT's own layers, and where each tensor of the
adapter files belongs.

PEFT itself says which tensors it would save for this config on this base; a file that holds one
more, one less or another name is refused. Each tensor is then given to exactly one place: a LoRA
layer (merged in blocks of rows), a unit (any other layer, merged whole), rows of an embedding that
it replaces, or a tensor of the base that it replaces whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgetune.checkpoint.adapter import (
    PREFIX,
    TRAINED_TOKENS,
    WEIGHTS_FILE,
    Adapter,
    split_name,
)
from edgetune.checkpoint.adapter_fields import is_plain_lora
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder
from edgetune.checkpoint.skeleton import meta_model, quiet
from edgetune.checkpoint.trained import weigh
from edgetune.errors import InputRefusedError
from edgetune.merge.copies import is_copy, one_of_the_tied, prove_tied_tokens
from edgetune.merge.injection import Load, note_places, peft_config, shared_indices
from edgetune.merge.ledger import Layer, Ledger, Source, Tokens
from edgetune.merge.proof import peft_refuses, prove_complete, prove_same, prove_whole
from edgetune.merge.unit import Unit

_EMBEDDINGS = (EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight"))
# What PEFT raises for a config that does not go with a base.
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Adapted:
    """A base with adapters: its layers and units by module name, the base's tensors replaced whole
    or in single rows.

    `saved_modules` are whole tensors that belong to one module alone (modules_to_save); the other
    whole ones replace the base's own parameter, which a tied model has once for two modules.
    `alone` are the modules that the adapters change for themselves alone.
    """

    layers: Mapping[str, Layer] = field(default_factory=dict)
    units: Mapping[str, Unit] = field(default_factory=dict)
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    replaced: Mapping[str, Source] = field(default_factory=dict)
    saved_modules: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()
    ledger: Ledger = field(default_factory=Ledger)


def adapt(base: CheckpointFolder, adapters: Sequence[tuple[Adapter, float]], load: Load) -> Adapted:
    """Put the adapters, with these weights, on the base's meta model; `load` reads its tensors.

    Raises InputRefusedError naming the tensor when a file does not hold exactly what PEFT would
    save, or when PEFT refuses the adapter's config on this base.
    """
    if not adapters:
        return Adapted()
    if all(is_plain_lora(adapter.config) for adapter, _ in adapters):
        return _adapt_lora(base, adapters)
    ((adapter, _),) = adapters
    return _adapt_units(base, adapter, load)


def replaced_alone(base: CheckpointFolder, adapted: Adapted) -> bool:
    """True when the adapters make a tied model's embeddings differ: they must be untied."""
    return base.tied and bool(adapted.alone & set(_EMBEDDINGS))


def _adapt_lora(base: CheckpointFolder, adapters: Sequence[tuple[Adapter, float]]) -> Adapted:
    names = [f"adapter_{n}" for n in range(len(adapters))]
    model = _peft_model(base, names, [adapter for adapter, _ in adapters])
    weigh(model, {name: weight for name, (_, weight) in zip(names, adapters, strict=True)})
    layers, saved = _modules(model, adapters[0][0])
    token_rows = _token_rows(model, base, adapters[0][0], layers)
    parts: dict[str, dict[tuple[str, str], Source]] = {module: {} for module in layers}
    replaced: dict[str, Source] = {}
    tokens: dict[str, Tokens] = {}
    ledger = Ledger()
    only = len(adapters) == 1 and adapters[0][1] == 1
    for name, (adapter, _) in zip(names, adapters, strict=True):
        prove_complete(model, name, adapter)
        for key, entry in adapter.tensors.items():
            module, part = split_name(key)
            source = Source(name, adapter, entry)
            if is_copy(source, module, part, token_rows, ledger):
                continue
            if part == TRAINED_TOKENS:
                tokens[f"{module}.weight"] = Tokens(source, token_rows[module])
            elif part:
                parts[module][name, part] = source
            elif only:
                replaced[module] = source
            else:
                prove_same(base, module, source, ledger)
    found = {m: Layer(m, layer, parts[m], ledger) for m, layer in layers.items()}
    own = {n for n in replaced if any(n.startswith(f"{m}.") for m in saved)}
    if base.tied and adapters[0][0].config.get("ensure_weight_tying"):
        found = one_of_the_tied(found)
        own -= {EMBEDDING, HEAD}
        changed = found.keys() - set(_EMBEDDINGS)
    else:
        changed = found.keys() | {n.rpartition(".")[0] for n in tokens if n == HEAD}
    return Adapted(
        layers=found,
        tokens=tokens,
        replaced=replaced,
        saved_modules=frozenset(own),
        alone=frozenset(changed | {n.rpartition(".")[0] for n in own}),
        ledger=ledger,
    )


def _adapt_units(base: CheckpointFolder, adapter: Adapter, load: Load) -> Adapted:
    name = "adapter_0"
    with quiet():
        try:
            peft, places = note_places(meta_model(base), name, adapter, load)
            buffers = shared_indices(peft, name, places) if adapter.peft_type == "UNILORA" else {}
        except _REFUSALS as why:
            raise peft_refuses(adapter, base, why) from why
    _, saved = _modules(peft, adapter, [place.module for place in places])
    rows = _token_rows(peft, base, adapter, [place.module for place in places])
    modules = {place.module for place in places}
    sources = {key: Source(name, adapter, entry) for key, entry in adapter.tensors.items()}
    ledger = Ledger()
    by_module: dict[str, dict[str, Source]] = {module: {} for module in modules}
    shared: dict[str, Source] = {}
    tokens: dict[str, Tokens] = {}
    whole: dict[str, Source] = {}
    beside: dict[str, Source] = {}
    for key, source in sources.items():
        if not key.startswith(PREFIX):
            shared[key] = source
            continue
        parts = key.removeprefix(PREFIX).split(".")
        holders = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
        if module := next((holder for holder in holders if holder in modules), None):
            by_module[module][key] = source
            continue
        beside[key] = source
        module, part = split_name(key)
        if is_copy(source, module, part, rows, ledger):
            continue
        if part == TRAINED_TOKENS:
            tokens[f"{module}.weight"] = Tokens(source, rows.get(module, ()))
        else:
            whole[key] = source
    if adapter.peft_type == "TRAINABLE_TOKENS" and base.tied:
        for key in prove_tied_tokens(by_module, whole, ledger):
            del whole[key], beside[key]
    prove_whole(peft, name, adapter, beside, modules)
    for module, tensors in sorted(by_module.items()):
        if not tensors and not shared:
            msg = f"{adapter.path / WEIGHTS_FILE}: no tensor for {module}, which its config targets"
            raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    replaced = {split_name(key)[0]: source for key, source in whole.items()}
    own = {n for n in replaced if any(n.startswith(f"{m}.") for m in saved)}
    units = {
        module: Unit(
            name=name,
            path=adapter.path,
            module=module,
            places=tuple(place for place in places if place.module == module),
            peft=peft,
            tensors=tensors,
            shared=shared,
            buffers=buffers,
            ledger=ledger,
        )
        for module, tensors in by_module.items()
    }
    # PEFT ties trained tokens of a tied embedding to its head
    together = {_EMBEDDINGS[0]} if adapter.peft_type == "TRAINABLE_TOKENS" else set()
    changed = modules - together | {n.rpartition(".")[0] for n in {*own, *tokens} if n != EMBEDDING}
    if EMBEDDING in own:
        changed |= {_EMBEDDINGS[0]}
    return Adapted(
        units=units,
        tokens=tokens,
        replaced=replaced,
        saved_modules=frozenset(own),
        alone=frozenset(changed),
        ledger=ledger,
    )


def _peft_model(base: CheckpointFolder, names: Sequence[str], adapters: Sequence[Adapter]) -> Any:
    with quiet():
        from accelerate import init_empty_weights
        from peft import get_peft_model

        model = meta_model(base)
        for name, adapter in zip(names, adapters, strict=True):
            try:
                config = peft_config(adapter)
                with init_empty_weights(include_buffers=False):
                    if name == names[0]:
                        model = get_peft_model(model, config, name, low_cpu_mem_usage=True)
                    else:
                        model.add_adapter(name, config, low_cpu_mem_usage=True)
            except _REFUSALS as why:
                raise peft_refuses(adapter, base, why) from why
        model.base_model.set_adapter(list(names))
        return model


def _modules(
    model: Any, adapter: Adapter, targets: Sequence[str] = ()
) -> tuple[dict[str, Any], set[str]]:
    """(PEFT's layers by module name, names of the modules that modules_to_save wraps)."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    layers: dict[str, Any] = {}
    saved: set[str] = set()
    for name, module in model.named_modules():
        bare = name.removeprefix(PREFIX)
        if isinstance(module, TrainableTokensLayer):
            continue
        if isinstance(module, BaseTunerLayer):
            layers[bare] = module
        elif isinstance(module, ModulesToSaveWrapper):
            saved.add(bare)
    for module in [*layers, *targets]:
        if outer := next((s for s in saved if f"{module}.".startswith(f"{s}.")), None):
            msg = f"{adapter.path}: {outer} is in modules_to_save, and target_modules are inside it"
            raise InputRefusedError(msg, "train either the whole module or adapters in it")
    return layers, saved


def _token_rows(
    model: Any, base: CheckpointFolder, adapter: Adapter, taken: Any
) -> dict[str, tuple[int, ...]]:
    """The rows of each module that trainable_token_indices trains, as PEFT understands it."""
    from peft.utils.other import TrainableTokensWrapper

    rows: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, TrainableTokensWrapper):
            continue
        bare = name.removeprefix(PREFIX)
        together = set(_EMBEDDINGS) if base.tied else {bare}
        if both := sorted(
            together & {str(t).removesuffix(".token_adapter.base_layer") for t in taken}
        ):
            msg = f"{adapter.path}: trainable_token_indices and an adapter both change {both[0]}"
            raise InputRefusedError(msg, "train either single tokens or an adapter on embeddings")
        if module.token_adapter.tied_adapter is None:
            (indices,) = module.token_adapter.token_indices.values()
            count = module.token_adapter.get_base_layer().weight.shape[0]
            if len(set(indices)) < len(indices) or not all(0 <= i < count for i in indices):
                msg = (
                    f"{adapter.path}: trainable_token_indices of {bare} are not different numbers "
                    f"from 0 to {count - 1}"
                )
                raise InputRefusedError(msg, "name the base that this adapter was trained on")
            rows[bare] = tuple(indices)
    return rows
