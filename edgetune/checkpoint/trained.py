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

from edgetune.checkpoint.four_bit import bitsandbytes_config
from edgetune.checkpoint.skeleton import quiet
from edgetune.errors import InputRefusedError

AdapterArgument = Mapping[str, Any]  # {"path": str, "weight": float}, as a step's arguments


def load_trained_model(
    base_path: str | Path,
    trained_as: Mapping[str, Any] | None,
    adapters: Sequence[AdapterArgument],
    onto: str = "dequantized",
) -> Any:
    """The base as the adapters saw it, with all of them active at their weights, unmerged.

    With `onto` "original" the adapters lie over the base as it is stored, whatever `trained_as`
    says. Raises InputRefusedError when base or adapter does not load whole.
    """
    base = _load_base(Path(base_path), trained_as if onto == "dequantized" else None)
    return _with_adapters(base, adapters) if adapters else base


def load_base_alone(
    base_path: str | Path,
    trained_as: Mapping[str, Any] | None,
    adapters: Sequence[AdapterArgument],
) -> Any:
    """The base as the adapters saw it, without them.

    A causal language model has a head of its own, so there is none that an adapter brought and
    that would have to stay (resized vocabularies are refused).
    """
    del adapters
    return _load_base(Path(base_path), trained_as)


def load_plain(path: str | Path, dtype: Any = torch.float32) -> Any:
    """A checkpoint as it is, in `dtype`. Raises InputRefusedError when it does not load whole."""
    return _from_pretrained(Path(path), dtype=dtype)


def _load_base(path: Path, trained_as: Mapping[str, Any] | None) -> Any:
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


def _with_adapters(base: Any, adapters: Sequence[AdapterArgument]) -> Any:
    with quiet():
        from peft import PeftConfig, PeftModel

        names = [f"adapter_{n}" for n in range(len(adapters))]
        config = PeftConfig.from_pretrained(str(adapters[0]["path"]))
        model = PeftModel(base, config, adapter_name=names[0])
        for name, adapter in zip(names, adapters, strict=True):
            _load_adapter(model, name, str(adapter["path"]))
        model.base_model.set_adapter(names)
    weigh(model, {n: float(a["weight"]) for n, a in zip(names, adapters, strict=True)})
    return model.eval()


def _load_adapter(model: Any, name: str, path: str) -> None:
    try:
        told = model.load_adapter(path, name, torch_device="cpu")
    except (KeyError, RuntimeError, ValueError) as why:
        msg = f"{path}: PEFT refuses it ({' '.join(str(why).split())[:300]})"
        raise InputRefusedError(msg, "name the base that this adapter was trained on") from why
    for what in ("missing_keys", "unexpected_keys"):
        if keys := sorted(getattr(told, what)):
            msg = f"{path}: {what.replace('_', ' ')} when PEFT loads it: {keys[0]}"
            raise InputRefusedError(msg, "name the base that this adapter was trained on")


def weigh(model: Any, weights: Mapping[str, float]) -> None:
    """Scale each adapter's delta by its weight, each layer with its own rank and alpha."""
    from peft.tuners.lora.layer import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, weight in weights.items():
                module.set_scale(name, weight)
