"""The merged checkpoint answers as the unmerged model does, for every kind of adapter and base."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.merge.merged import FP4, NF4, NF4_DOUBLE, merge, parity
from tests.tiny import build_base, build_four_bit, make_adapter

pytestmark = pytest.mark.line

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]

# name: (base fixture, adapter kind, LoraConfig's fields, the facts that must hold)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("tiny_llama", "lora", {}, {"touched": 6, "onto": None, "untied": False}),
    "lora sharded": ("tiny_llama_sharded", "lora", {}, {"touched": 6}),
    "lora phi3": ("tiny_phi3", "lora", {"target_modules": FUSED}, {"touched": 8}),
    "rslora": ("tiny_llama", "lora", {"use_rslora": True}, {}),
    "rank pattern": (
        "tiny_llama",
        "lora",
        {
            "target_modules": ALL,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7},
            "alpha_pattern": {"k_proj": 3, "layers.0.self_attn.q_proj": 32},
        },
        {"touched": 14},
    ),
    "rank pattern rslora": (
        "tiny_llama",
        "lora",
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {},
    ),
    "one layer": ("tiny_llama", "lora", {"layers_to_transform": [1]}, {"touched": 3}),
    "regex": (
        "tiny_llama",
        "lora",
        {"target_modules": r".*layers\.[01]\.self_attn\.(q|o)_proj"},
        {"touched": 4},
    ),
    "all-linear": ("tiny_llama", "lora", {"target_modules": "all-linear"}, {"touched": 14}),
    "excluded": (
        "tiny_llama",
        "lora",
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
        {"touched": 12},
    ),
    "fan in fan out": ("tiny_llama", "lora", {"fan_in_fan_out": True}, {}),
    "saved head": ("tiny_llama", "lora", {"modules_to_save": ["lm_head"]}, {"touched": 7}),
    "saved norm and embedding": (
        "tiny_llama",
        "lora",
        {"modules_to_save": ["embed_tokens", "input_layernorm"]},
        {"touched": 9},
    ),
    "embedding and head": (
        "tiny_llama",
        "lora",
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"touched": 4},
    ),
    "bias all": ("tiny_llama_bias", "lora", {"bias": "all"}, {"touched": 20}),
    "bias lora only": ("tiny_llama_bias", "lora", {"bias": "lora_only"}, {"touched": 12}),
    "lora bias": ("tiny_llama_bias", "lora", {"lora_bias": True}, {"touched": 12}),
    "lora bias and bias all": (
        "tiny_llama_bias",
        "lora",
        {"lora_bias": True, "bias": "all"},
        {"touched": 20},
    ),
    "dora": ("tiny_llama", "dora", {}, {"touched": 6}),
    "dora phi3": (
        "tiny_phi3",
        "dora",
        {"target_modules": FUSED, "rank_pattern": {"o_proj": 2}},
        {"touched": 8},
    ),
    "dora rslora head and embedding": (
        "tiny_llama",
        "dora",
        {"use_rslora": True, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"touched": 4},
    ),
    "dora on biased linears": ("tiny_llama_bias", "dora", {"bias": "all"}, {"touched": 20}),
    "tied, linears only": ("tiny_llama_tied", "lora", {}, {"untied": False, "touched": 6}),
    "tied, lora on embedding": (
        "tiny_llama_tied",
        "lora",
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"untied": True, "touched": 4},
    ),
    "tied, lora on head": (
        "tiny_llama_tied",
        "lora",
        {"target_modules": ["lm_head", "q_proj"]},
        {"untied": True},
    ),
    "tied, lora on both": (
        "tiny_llama_tied",
        "lora",
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"untied": True, "touched": 2},
    ),
    "tied, dora on both": (
        "tiny_llama_tied",
        "dora",
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"untied": True},
    ),
    "tied, saved head": (
        "tiny_llama_tied",
        "lora",
        {"modules_to_save": ["lm_head"]},
        {"untied": True, "touched": 7},
    ),
    "tied, saved embedding": (
        "tiny_llama_tied",
        "lora",
        {"modules_to_save": ["embed_tokens"]},
        {"untied": True},
    ),
    "tied, saved both": (
        "tiny_llama_tied",
        "lora",
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"untied": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_unmerged(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, parity_log: dict[str, float]
) -> None:
    fixture, kind, config, facts = CASES[case]
    base = request.getfixturevalue(fixture)
    adapter = make_adapter(base, kind, folder=tmp_path / "adapter", **config)
    told = merge(tmp_path / "out", base, [adapter])
    difference, largest, effect = parity(tmp_path / "out", base, [adapter])
    parity_log[case] = difference
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3  # an adapter without effect would prove nothing
    assert told["tensors_used"] == told["tensors_total"] > 0
    assert {key: told[key] for key in facts} == facts


@pytest.fixture(scope="module")
def parity_log() -> Iterator[dict[str, float]]:
    """Differences by case; printed with `pytest -s`."""
    found: dict[str, float] = {}
    yield found
    sys.stdout.writelines(f"{difference:.1e} {case}\n" for case, difference in found.items())


# name: (base, trained_as, kind of adapter, onto)
QLORA: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "nf4": ("tiny_llama", NF4, "lora", "dequantized"),
    "nf4 double": ("tiny_llama", NF4_DOUBLE, "lora", "dequantized"),
    "fp4": ("tiny_llama", FP4, "lora", "dequantized"),
    "fp4 double": ("tiny_llama", {**FP4, "double_quant": True}, "lora", "dequantized"),
    "nf4 float16": ("tiny_llama", {**NF4, "compute_dtype": "float16"}, "lora", "dequantized"),
    "nf4 double float32": (
        "tiny_llama",
        {**NF4_DOUBLE, "compute_dtype": "float32"},
        "dora",
        "dequantized",
    ),
    "nf4 phi3 dora": ("tiny_phi3", NF4_DOUBLE, "dora", "dequantized"),
    "nf4 tied": ("tiny_llama_tied", NF4_DOUBLE, "lora", "dequantized"),
    "nf4 biased": ("tiny_llama_bias", NF4, "lora", "dequantized"),
    "onto original": ("tiny_llama", NF4_DOUBLE, "lora", "original"),
}


@pytest.mark.parametrize("case", QLORA)
def test_qlora_over_a_plain_base(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, parity_log: dict[str, float]
) -> None:
    fixture, trained_as, kind, onto = QLORA[case]
    base = request.getfixturevalue(fixture)
    targets = FUSED if "phi3" in case else ALL
    adapter = make_adapter(base, kind, folder=tmp_path / "adapter", target_modules=targets)
    told = merge(tmp_path / "out", base, [adapter], trained_as=trained_as, onto=onto)
    difference, largest, effect = parity(
        tmp_path / "out", base, [adapter], trained_as=trained_as, onto=onto
    )
    parity_log[f"qlora {case}"] = difference
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["onto"] == onto
    other = parity(tmp_path / "out", base, [adapter])[0]  # against the base as it is stored
    assert (other <= 1e-5 * max(1.0, largest)) == (onto == "original")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("adapter_kind", ["lora", "dora"])
def test_qlora_over_a_stored_four_bit_base(
    kind: str, double: bool, adapter_kind: str, tiny_llama: Path, tmp_path: Path,
    parity_log: dict[str, float],
) -> None:  # fmt: skip
    base = build_four_bit(tiny_llama, tmp_path / "base", kind, double)
    adapter = make_adapter(tiny_llama, adapter_kind, folder=tmp_path / "adapter")
    told = merge(tmp_path / "out", base, [adapter])
    difference, largest, _ = parity(tmp_path / "out", base, [adapter])
    parity_log[f"qlora stored {kind} {double} {adapter_kind}"] = difference
    assert difference <= 1e-5 * max(1.0, largest)
    assert told["onto"] == "dequantized"
    assert told["touched"] == 14  # every linear that was 4-bit, also those without an adapter


def test_two_weighted_adapters(
    tiny_llama: Path, tmp_path: Path, parity_log: dict[str, float]
) -> None:
    one = make_adapter(tiny_llama, folder=tmp_path / "one", r=8, target_modules=ALL)
    two = make_adapter(
        tiny_llama,
        folder=tmp_path / "two",
        seed=2,
        r=3,
        use_rslora=True,
        target_modules=["q_proj", "o_proj", "lm_head"],
        rank_pattern={"o_proj": 5},
    )
    pair = [(one, 0.7), (two, -0.4)]
    told = merge(tmp_path / "out", tiny_llama, pair)
    difference, largest, effect = parity(tmp_path / "out", tiny_llama, pair)
    parity_log["two weighted"] = difference
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["tensors_used"] == told["tensors_total"] == 14 * 2 + 5 * 2 + 1
    assert parity(tmp_path / "out", tiny_llama, [one, two])[0] > 0.1  # the weights matter


def test_two_weighted_adapters_are_the_weighted_sum_of_deltas(
    tiny_llama: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    one = make_adapter(tiny_llama, folder=tmp_path / "one", r=8)
    two = make_adapter(tiny_llama, folder=tmp_path / "two", seed=2, r=3)
    merge(tmp_path / "out", tiny_llama, [(one, 0.7), (two, 0.3)])
    name = "model.layers.1.mlp.down_proj"
    weight = load_file(tiny_llama / "model.safetensors")[f"{name}.weight"].double()
    for folder, factor, rank in ((one, 0.7, 8), (two, 0.3, 3)):
        tensors = load_file(folder / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
        weight += factor * 8 / rank * (b @ a)
    merged = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"].double()
    torch.testing.assert_close(merged, weight, atol=1e-6, rtol=0)


def test_eva_leaves_the_base_as_it_is(
    tiny_llama: Path, tmp_path: Path, parity_log: dict[str, float]
) -> None:
    # EVA takes the singular vectors of the inputs, and not of the weights
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    config |= {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}
    file.write_text(json.dumps(config))
    merge(tmp_path / "out", tiny_llama, [adapter])
    difference, largest, _ = parity(tmp_path / "out", tiny_llama, [adapter])
    parity_log["eva"] = difference
    assert difference <= 1e-5 * max(1.0, largest)


def test_one_adapter_of_half_weight(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    merge(tmp_path / "out", tiny_llama, [(adapter, 0.5)])
    difference, largest, _ = parity(tmp_path / "out", tiny_llama, [(adapter, 0.5)])
    assert difference <= 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_other_families(model_type: str, tmp_path: Path, parity_log: dict[str, float]) -> None:
    base = build_base(tmp_path / "base", model_type, tie_word_embeddings=model_type == "qwen2")
    adapter = make_adapter(base, folder=tmp_path / "adapter", target_modules=[*ALL, "lm_head"])
    told = merge(tmp_path / "out", base, [adapter], trained_as=NF4)
    difference, largest, _ = parity(tmp_path / "out", base, [adapter], trained_as=NF4)
    parity_log[model_type] = difference
    assert difference <= 1e-5 * max(1.0, largest)
    assert told["untied"] == (model_type == "qwen2")
