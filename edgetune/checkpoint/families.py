"""Which bases can be built: model families and quantizations. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """A family of decoders whose checkpoints name their tensors as Llama's do
    (`model.embed_tokens`, `model.layers.N.…`, `lm_head`) and whose whole line is tested."""

    # transformers' class, which onnxruntime-genai's builder goes by.
    architecture: str
    # Whether embeddings are tied where config.json does not say: the configuration class's default.
    ties: bool = False


_TAKE_TEXT = "save its text part alone, as a causal language model"
SUPPORTED: dict[str, Family] = {
    "gemma": Family("GemmaForCausalLM", ties=True),
    "gemma2": Family("Gemma2ForCausalLM", ties=True),
    "gemma3_text": Family("Gemma3ForCausalLM", ties=True),
    "granite": Family("GraniteForCausalLM"),
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM"),
    "olmo": Family("OlmoForCausalLM"),
    "phi3": Family("Phi3ForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM"),
    "qwen3": Family("Qwen3ForCausalLM"),
    "smollm3": Family("SmolLM3ForCausalLM", ties=True),
}


# What to do with families that are asked for often.
REFUSED: dict[str, str] = {
    "phi3small": "Phi-3-small is code in its own repository; take Phi-3-mini or -medium",
    "gemma3": "a Gemma-3 for text and images; " + _TAKE_TEXT,
    "gemma3n": "a Gemma-3n for text, images and sound; take a text model",
    "llama4": "a Llama 4 for text and images; take a Llama 3 text model",
    "mistral3": "a Mistral 3 for text and images; " + _TAKE_TEXT,
    "mllama": "a Llama 3.2 for text and images; take a Llama 3.2 text model",
    "phi3_v": "a Phi-3 for text and images; take Phi-3-mini or -medium",
    "phi4mm": "a Phi-4 for text, images and sound; take Phi-4-mini",
    "qwen2_vl": "a Qwen for text and images; take a Qwen2.5 text model",
    "qwen2_5_vl": "a Qwen for text and images; take a Qwen2.5 text model",
    "qwen3_vl": "a Qwen for text and images; take a Qwen3 text model",
    "phimoe": "a mixture of experts; take Phi-3-mini or -medium",
    "mixtral": "a mixture of experts; take a Mistral",
    "qwen2_moe": "a mixture of experts; take a Qwen2.5",
    "qwen3_moe": "a mixture of experts; take a Qwen3",
    "olmo2": "onnxruntime-genai has no builder for OLMo 2; take an OLMo 1",
    "granitemoe": "a mixture of experts; take a dense Granite",
    "granitemoehybrid": "a hybrid Granite; take a dense Granite 3",
}
_PARTS = ("text_config", "vision_config", "audio_config")


def unsupported_reason(config: Mapping[str, Any]) -> str | None:
    """Why a base of this config cannot be built, by name, and what to do; None when it can.

    A supported family that also names code of its own (`auto_map`, as Phi-3 does) is taken:
    transformers has the family, and the code is never run.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        return _unsupported_type(str(model_type), config)
    architectures = config.get("architectures") or []
    if architectures and not any(str(a).endswith("ForCausalLM") for a in architectures):
        return f"{architectures[0]} is not a causal language model"
    if parts := [name for name in _PARTS if config.get(name)]:
        return f"config.json has {' and '.join(parts)}: not a text model; {_TAKE_TEXT}"
    # older MLX conversions have `quantization` alone
    return quantization_reason(config.get("quantization_config") or config.get("quantization"))


def _unsupported_type(model_type: str, config: Mapping[str, Any]) -> str:
    start = f"model type {model_type!r} is not supported"
    if model_type in REFUSED:
        return f"{start}: {REFUSED[model_type]}"
    architecture = str(next(iter(config.get("architectures") or []), ""))
    parts = [name for name in _PARTS if config.get(name)]
    if parts or architecture.endswith("ForConditionalGeneration"):
        return f"{start}: {architecture or 'it'} is not a text-only decoder; {_TAKE_TEXT}"
    if code := config.get("auto_map"):
        named = next((str(v) for v in code.values()), "") if isinstance(code, Mapping) else ""
        module = named.rpartition("--")[2].partition(".")[0]
        return f"{start}: it is code of its own ({module}.py), which edgetune never runs"
    return f"{start}; supported are {', '.join(SUPPORTED)}"


def quantization_reason(quantization: Mapping[str, Any] | None) -> str | None:
    """Why weights quantized this way cannot be read, by name; None when they can."""
    if not quantization or is_four_bit(quantization):
        return None
    # MLX names no method, and bitsandbytes did not at first
    unnamed = "MLX" if "bits" in quantization else "bitsandbytes"
    method = quantization.get("quant_method") or unnamed
    if quantization.get("load_in_8bit"):
        method = "bitsandbytes 8-bit"
    return (
        f"its weights are quantized ({method}); only plain weights and bitsandbytes 4-bit are "
        "supported"
    )


def is_four_bit(quantization: Mapping[str, Any] | None) -> bool:
    """True for the quantization_config of a bitsandbytes 4-bit checkpoint."""
    return bool(
        quantization
        and quantization.get("quant_method", "bitsandbytes") == "bitsandbytes"
        and (quantization.get("load_in_4bit") or quantization.get("_load_in_4bit"))
    )


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """What config.json says about tied input and output embeddings, or the family's default."""
    family = SUPPORTED.get(str(config.get("model_type")))
    return bool(config.get("tie_word_embeddings", family is not None and family.ties))
