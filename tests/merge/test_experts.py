"""Mixtures of experts are merged as a checkpoint; a plan refuses them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetune.checkpoint.experts import EXPERTS, experts_problems, stored_names, stored_shapes
from edgetune.errors import InputRefusedError
from tests.merge.merged import NF4, merge, parity
from tests.tiny import build_base, edit_tensors, make_adapter

SMALL = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
BASES: dict[str, dict[str, Any]] = {
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 96, "head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**SMALL, "shared_expert_intermediate_size": 96},
    "qwen3_moe": {**SMALL, "head_dim": 16},
}
PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]


def test_every_family_has_a_base() -> None:
    assert BASES.keys() == EXPERTS.keys()


@pytest.mark.parametrize(
    "family",
    ["mixtral", *(pytest.param(f, marks=pytest.mark.slow) for f in BASES if f != "mixtral")],
)
def test_experts_and_attention(family: str, tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", family, **BASES[family])
    adapter = make_adapter(
        base, folder=tmp_path / "adapter", target_modules=["q_proj"], target_parameters=PARAMETERS
    )
    told = merge(tmp_path / "out", base, [adapter])
    difference, largest, effect = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["tensors_used"] == told["tensors_total"] == 12
    before, after = (load_file(p / "model.safetensors") for p in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        touched = ".experts." in name or "q_proj" in name
        assert (tensor.dtype == torch.float32) == touched, name


def test_attention_alone_copies_the_experts(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", "mixtral", **BASES["mixtral"])
    adapter = make_adapter(base, folder=tmp_path / "a", target_modules=["q_proj", "o_proj"])
    told = merge(tmp_path / "out", base, [adapter])
    difference, largest, _ = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    assert told["touched"] == 4


def test_one_parameter_of_one_layer(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", "qwen3_moe", **BASES["qwen3_moe"])
    adapter = make_adapter(
        base, folder=tmp_path / "a", target_modules=[],
        target_parameters=["layers.1.mlp.experts.down_proj"],
    )  # fmt: skip
    told = merge(tmp_path / "out", base, [adapter])
    difference, largest, effect = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["tensors_used"] == 2


def test_four_bit_experts_are_refused(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", "mixtral", **BASES["mixtral"])
    adapter = make_adapter(base, folder=tmp_path / "a", target_modules=["q_proj"])
    with pytest.raises(InputRefusedError, match="4-bit weights of a mixture of experts"):
        merge(tmp_path / "out", base, [adapter], trained_as=NF4)


def test_adapters_of_single_experts_are_refused(tmp_path: Path) -> None:
    """transformers 4 had a module for each expert; PEFT converts such adapters when it loads."""
    base = build_base(tmp_path / "base", "mixtral", **BASES["mixtral"])
    adapter = make_adapter(base, folder=tmp_path / "a", target_modules=["q_proj"])
    name = "base_model.model.model.layers.0.block_sparse_moe.experts.0.w1.lora_A.weight"
    edit_tensors(adapter / "adapter_model.safetensors", lambda t: {**t, name: torch.ones(4, 64)})
    with pytest.raises(InputRefusedError, match="was trained with transformers 4"):
        merge(tmp_path / "out", base, [adapter])


def test_a_plan_refuses_them_by_name() -> None:
    (problem,) = experts_problems({"model_type": "mixtral"}, "some/base")
    assert problem.message == (
        "some/base: mixtral is a mixture of experts: it can be merged, not exported"
    )
    assert problem.exit_code == 4
    assert problem.hint
    assert list(experts_problems({"model_type": "llama"}, "some/base")) == []


def test_names() -> None:
    name = "model.layers.3.mlp.experts.gate_up_proj"
    assert stored_names("mixtral", name, (2, 8, 4)) == [
        "model.layers.3.block_sparse_moe.experts.0.w1.weight",
        "model.layers.3.block_sparse_moe.experts.0.w3.weight",
        "model.layers.3.block_sparse_moe.experts.1.w1.weight",
        "model.layers.3.block_sparse_moe.experts.1.w3.weight",
    ]
    shapes = stored_shapes("mixtral", {name: (2, 8, 4), "model.layers.3.mlp.gate.weight": (2, 4)})
    assert shapes.pop("model.layers.3.block_sparse_moe.gate.weight") == (2, 4)
    assert set(shapes.values()) == {(4, 4)}
    assert len(shapes) == 4
    assert stored_names("llama", name, (2, 8, 4)) == [name]
