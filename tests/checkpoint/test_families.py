"""Which bases are taken, and what transformers' own defaults say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgetune.checkpoint.families import SUPPORTED, is_four_bit, ties_embeddings, unsupported_reason
from edgetune.errors import INPUT_REFUSED, PlanError
from edgetune.files import dump_json, read_json
from edgetune.inspect import describe
from edgetune.planning import plan_builds
from edgetune.recipe import Recipe
from tests.families import FAMILIES


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_default_of_tied_embeddings_is_the_configuration_class_s(model_type: str) -> None:
    from transformers import AutoConfig

    ties = SUPPORTED[model_type].ties
    assert AutoConfig.for_model(model_type).tie_word_embeddings == ties
    assert ties_embeddings({"model_type": model_type}) == ties
    assert ties_embeddings({"model_type": model_type, "tie_word_embeddings": not ties}) != ties


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_the_architecture_is_the_class_that_transformers_takes(model_type: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] == SUPPORTED[model_type].architecture


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_every_supported_family_has_a_tiny_model(model_type: str) -> None:
    assert model_type in {tiny.model_type for tiny in FAMILIES.values()}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "phi3small", "auto_map": {"AutoConfig": "configuration_phi3_small.C"}},
            "'phi3small' is not supported: Phi-3-small is code in its own repository; take Phi-3-m",
        ),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
            "'gemma3' is not supported: a Gemma-3 for text and images; save its text part alone",
        ),
        ({"model_type": "llama4"}, "a Llama 4 for text and images; take a Llama 3 text model"),
        ({"model_type": "mistral3", "text_config": {}}, "a Mistral 3 for text and images"),
        (
            {"model_type": "idefics9", "architectures": ["Idefics9ForConditionalGeneration"]},
            "Idefics9ForConditionalGeneration is not a text-only decoder",
        ),
        ({"model_type": "new", "vision_config": {"a": 1}}, "it is not a text-only decoder"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "me/mine--configuration_mine.Mine"}},
            "it is code of its own (configuration_mine.py), which edgetune never runs",
        ),
        ({"model_type": "mamba"}, "'mamba' is not supported; supported are gemma, gemma2, "),
        ({"model_type": "olmo2"}, "onnxruntime-genai has no builder for OLMo 2"),
        ({"model_type": "qwen3_moe"}, "a mixture of experts; take a Qwen3"),
        (
            {"model_type": "llama", "vision_config": {"hidden_size": 8}},
            "config.json has vision_config: not a text model",
        ),
    ],
)
def test_a_base_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    assert words in (unsupported_reason(config) or "")


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "phi3small", "architectures": ["Phi3SmallForCausalLM"]}, "'phi3small' is"),
        ({"model_type": "gemma3"}, "a Gemma-3 for text and images"),
        ({"model_type": "olmo2"}, "no builder for OLMo 2"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "of the kind 'dynamic' cannot be"),
    ],
)
def test_a_plan_refuses_it_once_with_exit_code_4(
    changes: dict[str, Any], words: str, tiny_llama: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    config = {**read_json(base / "config.json"), "rope_parameters": None, **changes}
    (base / "config.json").write_text(dump_json(config))
    recipe = Recipe.model_validate({"name": "a", "base": str(base)})
    with pytest.raises(PlanError) as caught:
        plan_builds(recipe, ["generic-x86-64"], tmp_path / "out")
    (problem,) = caught.value.problems
    assert words in problem.message
    assert (problem.exit_code, caught.value.exit_code) == (INPUT_REFUSED, INPUT_REFUSED)
    assert words in " ".join(describe(base)["problems"])
