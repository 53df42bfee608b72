"""Which bases are taken, and what transformers' own defaults say."""

from __future__ import annotations

import pytest

from edgetune.checkpoint.families import SUPPORTED, is_four_bit, ties_embeddings, unsupported_reason


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_default_of_tied_embeddings_is_the_configuration_class_s(model_type: str) -> None:
    from transformers import AutoConfig

    assert AutoConfig.for_model(model_type).tie_word_embeddings == SUPPORTED[model_type]
    assert ties_embeddings({"model_type": model_type}) == SUPPORTED[model_type]
    assert ties_embeddings({"model_type": model_type, "tie_word_embeddings": True})


def test_reasons() -> None:
    assert (
        unsupported_reason({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}) is None
    )
    four_bit = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert is_four_bit(four_bit)
    assert unsupported_reason({"model_type": "phi3", "quantization_config": four_bit}) is None
    assert "model type 'gemma3'" in (unsupported_reason({"model_type": "gemma3"}) or "")
    assert "LlamaModel is not a causal" in (
        unsupported_reason({"model_type": "llama", "architectures": ["LlamaModel"]}) or ""
    )
    for settings, name in (
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "(bitsandbytes 8-bit)"),
        ({"quant_method": "gptq"}, "(gptq)"),
        ({"quant_method": "compressed-tensors"}, "(compressed-tensors)"),
    ):
        reason = unsupported_reason({"model_type": "llama", "quantization_config": settings})
        assert name in (reason or "")
