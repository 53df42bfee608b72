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


def unsupported_reason(config: Mapping[str, Any]) -> str | None:
    """Why a base of this config cannot be built, by name; None when it can."""
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        return f"model type {model_type!r} is not supported yet; supported are {known}"
    architectures = config.get("architectures") or []
    if architectures and not any(str(a).endswith("ForCausalLM") for a in architectures):
        return f"{architectures[0]} is not a causal language model"
    return quantization_reason(config.get("quantization_config"))


def quantization_reason(quantization: Mapping[str, Any] | None) -> str | None:
    """Why weights quantized this way cannot be read, by name; None when they can."""
    if not quantization or is_four_bit(quantization):
        return None
    method = quantization.get("quant_method") or "bitsandbytes"
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
