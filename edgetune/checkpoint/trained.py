"""The trained model in torch: the base as the adapter saw it, the adapters on it, unmerged.

Everything here goes through transformers and PEFT as a user would, and not through the code that
merges: it is what the merge is measured against. Models come in float32 and evaluation mode, on
the CPU. What transformers and PEFT only warn about (missing, unexpected or misfitting tensors) is
an error here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgetune.checkpoint.adapter import PREFIX, read_adapter, split_name, twin_of
from edgetune.checkpoint.combine import NAME, ONE_BY_ONE
from edgetune.checkpoint.folder import EMBEDDING, HEAD, read_checkpoint
from edgetune.checkpoint.four_bit import bitsandbytes_config
from edgetune.checkpoint.layered import load_layered
from edgetune.checkpoint.reshaped import vocabulary_rows
from edgetune.checkpoint.skeleton import quiet
from edgetune.checkpoint.tensors import load_tensor
from edgetune.errors import InputRefusedError

AdapterArgument = Mapping[str, Any]  # {"path": str, "weight": float}, as a step's arguments


def load_trained_model(
    base_path: str | Path,
    trained_as: Mapping[str, Any] | None,
    adapters: Sequence[AdapterArgument],
    onto: str = "dequantized",
    combine: Mapping[str, Any] | None = None,
    scratch: Path | None = None,
) -> Any:
    """The base as the adapters saw it, with all of them active at their weights, unmerged.

    With `combine` (a recipe's) PEFT's own combination of them is active in their place. With
    `scratch`, a folder on a disk with room for it in float32, the base is not held in memory
    (`checkpoint.layered`); the same for the functions below. With `onto` "original" the adapters
    lie over the base as it is stored, whatever `trained_as` says. Raises InputRefusedError when
    base or adapter does not load whole.
    """
    base = _load_base(Path(base_path), trained_as if onto == "dequantized" else None, scratch)
    if not adapters:
        return base
    return with_adapters(_resized(base, Path(base_path), adapters), adapters, combine)


def load_base_alone(
    base_path: str | Path,
    trained_as: Mapping[str, Any] | None,
    adapters: Sequence[AdapterArgument],
    scratch: Path | None = None,
) -> Any:
    """The base as the adapters saw it, without them.

    Where an adapter brought a larger vocabulary, its rows of the new tokens stay: without them
    there would be no base to compare with.
    """
    base = _load_base(Path(base_path), trained_as, scratch)
    return _resized(base, Path(base_path), adapters)


def load_plain(path: str | Path, dtype: Any = torch.float32, scratch: Path | None = None) -> Any:
    """A checkpoint as it is, in `dtype`; in float32 with `scratch`. Raises InputRefusedError when
    it does not load whole."""
    if scratch is not None:
        return load_layered(Path(path), None, scratch)
    return _from_pretrained(Path(path), dtype=dtype)


def _load_base(path: Path, trained_as: Mapping[str, Any] | None, scratch: Path | None) -> Any:
    if scratch is not None:
        return load_layered(path, trained_as, scratch)
    from transformers import AutoConfig

    with quiet():
        config = AutoConfig.from_pretrained(str(path), local_files_only=True)
    stored = getattr(config, "quantization_config", None) is not None
    if not stored and not trained_as:
        return _from_pretrained(path, dtype=torch.float32)
    settings = {} if stored or not trained_as else {"q": bitsandbytes_config(trained_as)}
    model = _from_pretrained(path, dtype="auto", quantization_config=settings.get("q"))
    with quiet():
        from bitsandbytes.nn import Linear4bit

        for module in model.modules():
            if isinstance(module, Linear4bit):
                # else the weights would be rounded to the type they were quantized from
                module.weight.quant_state.dtype = torch.float32
        model = model.dequantize(torch.float32).float().eval()
        return _with_exact_buffers(model, config)


def _with_exact_buffers(model: Any, config: Any) -> Any:
    """The model with what it computes from its config, computed in float32.

    Loaded in its stored type it has that rounded: the factor of Gemma's embeddings becomes 9.8125
    instead of 9.798, which a model that is loaded in float32 does not have.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, value in fresh.named_buffers():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, value)
    return model


def _from_pretrained(path: Path, **options: Any) -> Any:
    with quiet():
        from transformers import AutoModelForCausalLM

        model, told = AutoModelForCausalLM.from_pretrained(
            str(path),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            device_map="cpu",
            output_loading_info=True,
            **{k: v for k, v in options.items() if v is not None},
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in told[what]):
            msg = f"{path}: {what.replace('_', ' ')} when transformers loads it: {names[0]}"
            raise InputRefusedError(msg, "config.json and weight files do not belong together")
    return model.eval()


def _resized(model: Any, base: Path, adapters: Sequence[AdapterArgument]) -> Any:
    """The base with the rows of an adapter's larger (or smaller) vocabulary, if it has one."""
    for argument in adapters:
        adapter = read_adapter(Path(argument["path"]))
        rows = vocabulary_rows(adapter, read_checkpoint(base))
        if rows is None:
            continue
        with quiet(), torch.no_grad():
            before = model.get_input_embeddings().weight.shape[0]
            model.resize_token_embeddings(rows, mean_resizing=False)
            for key, entry in adapter.tensors.items():
                module = {EMBEDDING: model.get_input_embeddings(), HEAD: model.lm_head}.get(
                    split_name(key)[0]
                )
                if module is not None:
                    stored = load_tensor(adapter.path, entry, torch.float32)
                    module.weight[before:] = stored[before:]
    return model


def with_adapters(
    base: Any, adapters: Sequence[AdapterArgument], combine: Mapping[str, Any] | None = None
) -> Any:
    """PEFT's model of these adapters over a base. Raises InputRefusedError as the module says."""
    with quiet():
        from peft import PeftConfig, PeftModel

        names = [f"adapter_{n}" for n in range(len(adapters))]
        config = PeftConfig.from_pretrained(str(adapters[0]["path"]))
        model = PeftModel(base, config, adapter_name=names[0])
        for name, adapter in zip(names, adapters, strict=True):
            _load_adapter(model, name, str(adapter["path"]))
        model.base_model.set_adapter(names)
    weights = [float(adapter["weight"]) for adapter in adapters]
    if combine:
        with quiet():
            _combine(model, names, weights, combine)
    else:
        weigh(model, dict(zip(names, weights, strict=True)))
    return model.eval()


def _load_adapter(model: Any, name: str, path: str) -> None:
    try:
        told = model.load_adapter(path, name, torch_device="cpu")
    except (KeyError, RuntimeError, ValueError) as why:
        msg = f"{path}: PEFT refuses it ({' '.join(str(why).split())[:300]})"
        raise InputRefusedError(msg, "name the base that this adapter was trained on") from why
    for what in ("missing_keys", "unexpected_keys"):
        keys = set(getattr(told, what))
        if what == "missing_keys":
            keys -= _other_names(model, keys)
        else:
            keys -= _copies(Path(path), keys)
        if keys:
            msg = f"{path}: {what.replace('_', ' ')} when PEFT loads it: {min(keys)}"
            raise InputRefusedError(msg, "name the base that this adapter was trained on")


def _copies(path: Path, keys: set[str]) -> set[str]:
    """Those of these tensors that PEFT saved twice, and loads under the other name."""
    if not keys:
        return set()
    adapter = read_adapter(path)
    found = set()
    for key in keys & adapter.tensors.keys():
        twin = adapter.tensors.get(twin_of(key) or "")
        one = load_tensor(path, adapter.tensors[key])
        if twin is not None and one.equal(load_tensor(path, twin)):
            found.add(key)
    return found


def _other_names(model: Any, keys: set[str]) -> set[str]:
    """Those of these names that mean a parameter which has another name too: PEFT shares some
    between all layers, and loads them under one name only."""
    named = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameter) for name, parameter in named.items() if name not in keys}
    return {key for key in keys if key in named and id(named[key]) in loaded}


def _combine(
    model: Any, adapters: Sequence[str], weights: Sequence[float], settings: Mapping[str, Any]
) -> None:
    """Add PEFT's combination of these adapters to a PEFT model as `NAME`, and make it active.

    What is drawn at random is drawn from the seed. Raises InputRefusedError where PEFT refuses, or
    would leave a part of an adapter out.
    """
    from peft.tuners.lora.layer import LoraLayer

    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(settings["seed"])
            model.base_model.add_weighted_adapter(
                list(adapters),
                list(weights),
                NAME,
                combination_type=settings["how"],
                svd_rank=settings["rank"],
                density=settings["density"],
                majority_sign_method=settings["majority_sign_method"],
            )
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as why:
        msg = f"combine: {settings['how']}: PEFT refuses it ({' '.join(str(why).split())[:300]})"
        raise InputRefusedError(msg, ONE_BY_ONE) from why
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and NAME not in {*module.lora_A, *module.lora_embedding_A}:
            msg = f"combine: {settings['how']}: PEFT leaves {name.removeprefix(PREFIX)} out"
            raise InputRefusedError(msg, ONE_BY_ONE)
    model.base_model.set_adapter(NAME)


def weigh(model: Any, weights: Mapping[str, float]) -> None:
    """Scale each LoRA adapter's delta by its weight, each layer with its own rank and alpha."""
    from peft.tuners.lora.layer import LoraLayer

    weights = {name: weight for name, weight in weights.items() if weight != 1}
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, weight in weights.items():
                module.set_scale(name, weight)
