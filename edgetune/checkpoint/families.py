"""Which bases can be built: model families and quantizations. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Decoders whose checkpoints name their tensors as Llama's do (`model.embed_tokens`,
# `model.layers.N.…`, `lm_head`) and whose merge is tested: {model_type: ties embeddings where
# config.json does not say, the default of the family's configuration class}.
SUPPORTED: dict[str, bool] = {
    "llama": False,
    "mistral": False,
    "phi3": False,
    "qwen2": False,
    "qwen3": False,
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
    # older MLX conversions have `quantization` alone
    return quantization_reason(config.get("quantization_config") or config.get("quantization"))


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
    default = SUPPORTED.get(str(config.get("model_type")), False)
    return bool(config.get("tie_word_embeddings", default))
