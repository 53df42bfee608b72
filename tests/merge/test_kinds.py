"""Every adapter type that PEFT merges, against the unmerged model, on three families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import edgetune.merge.unit as unit_module
from edgetune.checkpoint.peft_types import TYPES
from edgetune.errors import InputRefusedError, StepFailedError
from tests.adapter_kinds import KINDS, Kind, make_kind
from tests.merge.merged import FP4, NF4_DOUBLE, merge, parity
from tests.tiny import edit_tensors

pytestmark = pytest.mark.line

BASES = ("tiny_llama", "tiny_phi3", "tiny_qwen2")
ADAPTER = "adapter_model.safetensors"
PAIRS = [(kind, base) for kind in KINDS for base in BASES]
# Each kind on one of the bases, in turn; the others take longer.
FAST = [(kind, BASES[number % 3]) for number, kind in enumerate(KINDS)]


def test_every_merged_type_has_a_kind() -> None:
    made = {kind.peft_type for kind in KINDS.values()} | {"LORA", "BEFT"}
    assert made == {name for name, row in TYPES.items() if row.refusal is None}


@pytest.mark.parametrize(
    ("kind", "base"),
    [pytest.param(*p, marks=() if p in FAST else pytest.mark.slow) for p in PAIRS],
)
def test_merged_equals_unmerged(
    kind: str, base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(base)
    adapter = make_kind(folder, KINDS[kind], tmp_path / "adapter")
    told = merge(tmp_path / "out", folder, [adapter])
    difference, largest, effect = parity(tmp_path / "out", folder, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3  # an adapter without effect would prove nothing
    assert told["tensors_used"] == told["tensors_total"] > 0
    assert told["untied"] == (kind == "HiRA embeddings" and base == "tiny_qwen2")
    assert told["all_modules"]
    assert all(row["delta_relative"] > 0 for row in told["all_modules"])


def test_biases_alone(tiny_llama_bias: Path, tiny_llama: Path, tmp_path: Path) -> None:
    kind = Kind("BEFT", {}, 0.3)
    adapter = make_kind(tiny_llama_bias, kind, tmp_path / "adapter")
    told = merge(tmp_path / "out", tiny_llama_bias, [adapter])
    difference, largest, effect = parity(tmp_path / "out", tiny_llama_bias, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["tensors_used"] == 6
    with pytest.raises(InputRefusedError, match="Base layer has no bias"):
        merge(tmp_path / "other", tiny_llama, [adapter])


@pytest.mark.parametrize("peft_type", ["OFT", "GLORA", "VERA"])
def test_biases_and_saved_modules_beside_another_type(
    peft_type: str, tiny_llama_bias: Path, tmp_path: Path
) -> None:
    named = {"OFT": "OFT", "GLORA": "GLoRA", "VERA": "VeRA"}[peft_type]
    fields = {**KINDS[named].fields, "modules_to_save": ["lm_head", "input_layernorm"]}
    bias = "vera_only" if peft_type == "VERA" else "all"
    kind = Kind(peft_type, {**fields, "bias": bias}, 0.1)
    adapter = make_kind(tiny_llama_bias, kind, tmp_path / "adapter")
    told = merge(tmp_path / "out", tiny_llama_bias, [adapter])
    difference, largest, effect = parity(tmp_path / "out", tiny_llama_bias, [adapter])
    assert difference <= 1e-5 * max(1.0, largest)
    assert effect > 0.3
    assert told["tensors_used"] == told["tensors_total"]


@pytest.mark.parametrize(("kind", "trained_as"), [("LoHa", NF4_DOUBLE), ("OFT", FP4), ("OSF", FP4)])
def test_over_a_four_bit_base(
    kind: str, trained_as: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_kind(tiny_llama, KINDS[kind], tmp_path / "adapter")
    told = merge(tmp_path / "out", tiny_llama, [adapter], trained_as=trained_as)
    difference, largest, _ = parity(tmp_path / "out", tiny_llama, [adapter], trained_as=trained_as)
    assert difference <= 1e-5 * max(1.0, largest)
    assert told["onto"] == "dequantized"
    assert parity(tmp_path / "out", tiny_llama, [adapter])[0] > 0.05


def test_stored_in_the_base_s_type(tiny_qwen2: Path, tmp_path: Path) -> None:
    adapter = make_kind(tiny_qwen2, KINDS["RoAd"], tmp_path / "adapter")
    told = merge(tmp_path / "out", tiny_qwen2, [adapter], merge_dtype="base")
    assert 0 < told["rounding_max_abs"] < 0.01


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
# what is wrong: (kind, change of the file's tensors, words of the message)
BROKEN: dict[str, tuple[str, Any, str]] = {
    "missing": (
        "LoHa", lambda t: {n: v for n, v in t.items() if n != f"{Q0}.hada_w1_a"},
        "hada_w1_a' is missing",
    ),
    "missing layer": (
        "LoHa", lambda t: {n: v for n, v in t.items() if not n.startswith(Q0)},
        "no tensor for model.layers.0.self_attn.q_proj, which its config targets",
    ),
    "missing shared": (
        "VeRA", lambda t: {n: v for n, v in t.items() if n != "base_model.vera_A"},
        "vera_A' is missing",
    ),
    "added": (
        "LoHa", lambda t: {**t, f"{Q0}.hada_w9": t[f"{Q0}.hada_w1_a"] * 1},
        "hada_w9' belongs to nothing that its config names",
    ),
    "added module": (
        "LoHa", lambda t: {**t, f"{Q0[:-6]}k_proj.hada_w1_a": t[f"{Q0}.hada_w1_a"] * 1},
        "k_proj.hada_w1_a' belongs to nothing",
    ),
    "added shared": (
        "VeRA", lambda t: {**t, "base_model.vera_C": t["base_model.vera_A"] * 1},
        "'base_model.vera_C' went into no tensor",
    ),
    "no module of the base": (
        "LoHa", lambda t: {**t, "base_model.model.nowhere.hada": t[f"{Q0}.hada_w1_a"] * 1},
        "not a module of this base: base_model.model.nowhere.hada",
    ),
    "shape": (
        "LoHa", lambda t: {**t, f"{Q0}.hada_w1_a": t[f"{Q0}.hada_w1_a"][:, :2].clone()},
        "size mismatch for",
    ),
    "nan": (
        "LoHa", lambda t: {**t, f"{Q0}.hada_w1_a": t[f"{Q0}.hada_w1_a"] * float("nan")},
        "hada_w1_a' holds NaN",
    ),
    "overflow": (
        "LoHa", lambda t: {n: v * 1e30 if n.startswith(Q0) else v for n, v in t.items()},
        "PEFT refuses it on model.layers.0.self_attn.q_proj (NaNs detected",
    ),
    "position outside": (
        "SHiRA", lambda t: {**t, f"{Q0}.shira_indices": t[f"{Q0}.shira_indices"] + 10_000},
        "PEFT refuses it on model.layers.0.self_attn.q_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str, tiny_llama: Path, tmp_path: Path) -> None:
    kind, change, words = BROKEN[case]
    adapter = make_kind(tiny_llama, KINDS[kind], tmp_path / "adapter")
    edit_tensors(adapter / ADAPTER, change)
    with pytest.raises(InputRefusedError) as caught:
        merge(tmp_path / "out", tiny_llama, [adapter])
    assert words in caught.value.message


@pytest.mark.parametrize("kind", ["RandLoRA regenerated", "FRoD regenerated", "PSOFT", "OSF"])
def test_what_is_made_again_is_the_same_each_time(
    kind: str, tiny_llama: Path, tmp_path: Path
) -> None:
    import torch

    adapter = make_kind(tiny_llama, KINDS[kind], tmp_path / "adapter")
    for seed in (1, 2):
        torch.manual_seed(seed)
        merge(tmp_path / str(seed), tiny_llama, [adapter])
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in "12")
    assert one == other


def test_only_lora_adds_up(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_kind(tiny_llama, KINDS["LoHa"], tmp_path / "adapter")
    for given in ([(adapter, 0.5)], [adapter, adapter]):
        with pytest.raises(InputRefusedError, match="only plain LoRA adapters add up; LoHa with"):
            merge(tmp_path / f"out{len(given)}", tiny_llama, given)


def test_config_that_peft_refuses(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_kind(tiny_llama, KINDS["VeRA"], tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    told = "PEFT refuses it on"
    for change, words in (
        ({"target_modules": ["nowhere"]}, told),
        ({"projection_prng_key": "four"}, told),
        ({"r": "four"}, "r is 'four', not a whole number"),
        ({"target_modules": 5}, "target_modules is 5, not a name"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(InputRefusedError, match=words):
            merge(tmp_path / f"out{len(list(tmp_path.iterdir()))}", tiny_llama, [adapter])


@pytest.mark.parametrize(
    ("kind", "change"),
    [("Uni-LoRA", {"proj_seed": -1}), ("VB-LoRA", {"vector_length": [[0, 1]]})],
)
def test_values_that_peft_uses_once_for_all_layers(
    kind: str, change: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_kind(tiny_llama, KINDS[kind], tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputRefusedError, match="PEFT refuses it on"):
        merge(tmp_path / "out", tiny_llama, [adapter])


def test_unknown_fields_are_told(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_kind(tiny_llama, KINDS["IA3"], tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"from_the_future": 3}))
    (warning,) = merge(tmp_path / "out", tiny_llama, [adapter])["warnings"]
    assert warning.endswith("ignored: from_the_future")


def test_a_layer_that_merges_nothing_is_an_error(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.ia3.layer import Linear

    adapter = make_kind(tiny_llama, KINDS["IA3"], tmp_path / "adapter")
    monkeypatch.setattr(Linear, "merge", lambda self, **options: None)
    with pytest.raises(StepFailedError, match="PEFT merged nothing of the adapter"):
        merge(tmp_path / "out", tiny_llama, [adapter])


def test_one_module_is_on_the_cpu_at_a_time(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_kind(tiny_llama, KINDS["LoHa"], tmp_path / "adapter")
    seen: list[int] = []
    load = unit_module._load

    def counting(unit: Any) -> None:
        load(unit)
        real = [p for p in unit.peft.parameters() if p.device.type != "meta"]
        seen.append(sum(p.numel() for p in real))

    monkeypatch.setattr(unit_module, "_load", counting)
    merge(tmp_path / "out", tiny_llama, [adapter])
    assert len(seen) == 6
    assert max(seen) < 64 * 128 + 4 * 4 * (64 + 128) + 1  # the widest layer and its adapter
