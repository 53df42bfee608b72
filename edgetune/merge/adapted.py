"""The base with its adapters on the meta device: PEFT's own layers, and where each tensor of the
adapter files belongs.

PEFT itself says which tensors it would save for this config on this base; a file that holds one
more, one less or another name is refused. Each tensor is then given to exactly one place: a LoRA
layer, or a tensor of the base that it replaces whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from edgetune.checkpoint.adapter import PREFIX, WEIGHTS_FILE, Adapter, split_name
from edgetune.checkpoint.adapter_fields import USED
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder
from edgetune.checkpoint.header import TensorEntry
from edgetune.checkpoint.skeleton import meta_model, quiet
from edgetune.checkpoint.tensors import load_rows, load_tensor, same_values
from edgetune.checkpoint.trained import weigh
from edgetune.errors import InputRefusedError

_WRONG_BASE = "name the base that this adapter was trained on"


@dataclass(frozen=True)
class Source:
    """One tensor of one adapter's file; `name` is what PEFT's model calls the adapter."""

    name: str
    adapter: Adapter
    entry: TensorEntry


@dataclass(frozen=True)
class Ledger:
    """The adapter tensors that were read into the merged checkpoint: (adapter's name, tensor's)."""

    used: set[tuple[str, str]] = field(default_factory=set)

    def load(self, source: Source) -> torch.Tensor:
        """Read a tensor in float32 and note it. Raises InputRefusedError for NaN, infinity."""
        self.used.add((source.name, source.entry.name))
        return load_tensor(source.adapter.path, source.entry, torch.float32)

    def load_rows(self, source: Source, start: int, stop: int) -> torch.Tensor:
        """As `load`, some rows of it."""
        self.used.add((source.name, source.entry.name))
        return load_rows(source.adapter.path, source.entry, start, stop).to(torch.float32)


@dataclass(frozen=True)
class Layer:
    """A LoRA layer of PEFT, and its tensors: {(adapter name in PEFT, part): source}."""

    module: str
    peft: Any
    parts: Mapping[tuple[str, str], Source]
    ledger: Ledger


@dataclass(frozen=True)
class Adapted:
    """A base with adapters: its layers by module name, and the base tensors replaced whole.

    `saved_modules` are whole tensors that belong to one module alone (modules_to_save); the other
    whole ones replace the base's own parameter, which a tied model has once for two modules.
    """

    layers: Mapping[str, Layer]
    replaced: Mapping[str, Source]
    saved_modules: frozenset[str]
    ledger: Ledger

    @property
    def touched_modules(self) -> frozenset[str]:
        """Modules that the adapters change for themselves alone."""
        return frozenset(self.layers) | {n.rpartition(".")[0] for n in self.saved_modules}


def adapt(base: CheckpointFolder, adapters: Sequence[tuple[Adapter, float]]) -> Adapted:
    """Put the adapters, with these weights, on the base's meta model.

    Raises InputRefusedError naming the tensor when a file does not hold exactly what PEFT would
    save, or when PEFT refuses the adapter's config on this base.
    """
    if not adapters:
        return Adapted({}, {}, frozenset(), Ledger())
    names = [f"adapter_{n}" for n in range(len(adapters))]
    model = _peft_model(base, names, [adapter for adapter, _ in adapters])
    weigh(model, {name: weight for name, (_, weight) in zip(names, adapters, strict=True)})
    layers, saved = _modules(model, adapters[0][0])
    parts: dict[str, dict[tuple[str, str], Source]] = {module: {} for module in layers}
    replaced: dict[str, Source] = {}
    ledger = Ledger()
    alone = len(adapters) == 1 and adapters[0][1] == 1
    for name, (adapter, _) in zip(names, adapters, strict=True):
        _prove_complete(model, name, adapter)
        for key, entry in adapter.tensors.items():
            module, part = split_name(key)
            if part:
                parts[module][name, part] = Source(name, adapter, entry)
            elif alone:
                replaced[module] = Source(name, adapter, entry)
            else:
                _prove_same(base, module, Source(name, adapter, entry), ledger)
    return Adapted(
        layers={m: Layer(m, layer, parts[m], ledger) for m, layer in layers.items()},
        replaced=replaced,
        saved_modules=frozenset(
            tensor for tensor in replaced if any(tensor.startswith(f"{m}.") for m in saved)
        ),
        ledger=ledger,
    )


def replaced_alone(base: CheckpointFolder, adapted: Adapted) -> bool:
    """True when the adapters make a tied model's embeddings differ: they must be untied."""
    modules = {EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")}
    return base.tied and bool(modules & adapted.touched_modules)


def _peft_model(base: CheckpointFolder, names: Sequence[str], adapters: Sequence[Adapter]) -> Any:
    with quiet():
        from accelerate import init_empty_weights
        from peft import LoraConfig, get_peft_model

        model = meta_model(base)
        for name, adapter in zip(names, adapters, strict=True):
            fields = {k: v for k, v in adapter.config.items() if k in USED and v is not None}
            try:
                # no initial values are needed, and some initializations want the base's weights
                config = LoraConfig(**fields, init_lora_weights=False, inference_mode=True)
                with init_empty_weights(include_buffers=False):
                    if name == names[0]:
                        model = get_peft_model(model, config, name, low_cpu_mem_usage=True)
                    else:
                        model.add_adapter(name, config, low_cpu_mem_usage=True)
            except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as why:
                text = " ".join(str(why).split())[:300]
                msg = f"{adapter.path}: PEFT refuses it on {base.path.name} ({text})"
                raise InputRefusedError(msg, _WRONG_BASE) from why
        model.base_model.set_adapter(list(names))
        return model


def _modules(model: Any, adapter: Adapter) -> tuple[dict[str, Any], set[str]]:
    """(LoRA layers by module name, names of the modules that modules_to_save wraps)."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    layers: dict[str, Any] = {}
    saved: set[str] = set()
    for name, module in model.named_modules():
        bare = name.removeprefix(PREFIX)
        if isinstance(module, BaseTunerLayer):
            layers[bare] = module
        elif isinstance(module, ModulesToSaveWrapper):
            saved.add(bare)
    for module in layers:
        if outer := next((s for s in saved if module.startswith(f"{s}.")), None):
            msg = f"{adapter.path}: {outer} is in modules_to_save, and target_modules are inside it"
            raise InputRefusedError(msg, "train either the whole module or adapters in it")
    return layers, saved


def _prove_same(base: CheckpointFolder, tensor: str, source: Source, ledger: Ledger) -> None:
    """In a weighted sum, a stored base weight must be the base's own: only deltas add up."""
    name = base.tied_source if base.tied and tensor in (EMBEDDING, HEAD) else tensor
    entry = base.tensors[name]

    def own(start: int, stop: int) -> torch.Tensor:
        return load_rows(base.path, entry, start, stop).to(torch.float32)

    fits = entry.shape == source.entry.shape
    if not fits or not same_values(entry.shape, partial(ledger.load_rows, source), own):
        msg = (
            f"{source.adapter.path}: {source.entry.name} is not the base's own weight, which "
            "makes a weighted sum undefined"
        )
        raise InputRefusedError(msg, _WRONG_BASE)


def _prove_complete(model: Any, name: str, adapter: Adapter) -> None:
    """Compare the file's names with what PEFT would save for this config on this base."""
    with quiet():
        from peft import get_peft_model_state_dict

        # a name here would make PEFT look for that base's vocabulary size, on the hub if need be
        model.peft_config[name].base_model_name_or_path = None
        expected = get_peft_model_state_dict(model, adapter_name=name)
        with_embeddings = get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=True
        )
    found = adapter.tensors.keys()
    file = adapter.path / WEIGHTS_FILE
    if missing := sorted(expected.keys() - found):
        msg = f"{file}: tensor {missing[0]!r} is missing{_more(missing)}"
        raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    if unknown := sorted(found - expected.keys() - with_embeddings.keys()):
        msg = f"{file}: tensor {unknown[0]!r} belongs to nothing that its config names"
        msg += _more(unknown)
        raise InputRefusedError(msg, _WRONG_BASE)
    for key in sorted(found):
        takes = (expected.get(key) if key in expected else with_embeddings[key]).shape
        if tuple(takes) != adapter.tensors[key].shape:
            shape = list(adapter.tensors[key].shape)
            msg = f"{file}: tensor {key!r} is {shape}, this base takes {list(takes)}"
            raise InputRefusedError(msg, _WRONG_BASE)


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
