"""What a module costs: against plain torch, from its layer on, predicted and as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.checkpoint.trained import load_plain
from edgetune.errors import UsageError
from edgetune.optimize.widths import Width, parse_width
from edgetune.reference.render import ScoredItem
from edgetune.sensitivity import RESULT, joint
from edgetune.sensitivity.layers import (
    InputSums,
    layers_of,
    rounded_to_8_bits,
    rounding_inputs,
    running,
    states_after,
    sums_of_inputs,
)
from edgetune.sensitivity.measure import sensitivity_step
from edgetune.sensitivity.rounded import noise_energy, rounded_weight
from edgetune.sensitivity.text import calibration_text, tokens_to_measure

pytestmark = pytest.mark.line

TASK = "text-generation"
FOUR = Width(4, 32, "rtn")
ITEMS = [
    ScoredItem(str(n), (5 + n, 7, 9), tuple(range(11 + n, 31 + n)), "", None) for n in range(3)
]


def measure(base: Path, out: Path, **changes: Any) -> dict[str, Any]:
    data = out.parent / f"{out.name}.jsonl"
    rows = [{"prompt": f"question {n}: ", "completion": "an answer of words"} for n in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out.mkdir()
    arguments = {
        "checkpoint": str(base),
        "calibration": str(data),
        "task": TASK,
        "accuracy_level": None,
        "default": {"bits": 4, "group_size": 32, "algorithm": "rtn", "symmetric": True},
        "seed": 1,
        "threads": 1,
        "layered": False,
        **changes,
    }
    sensitivity_step(arguments, out, lambda _: None)
    value: dict[str, Any] = json.loads((out / RESULT).read_text(encoding="utf-8"))
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tied")


@pytest.fixture(scope="module")
def tied(tiny_llama_tied: Path, folder: Path) -> dict[str, Any]:
    return measure(tiny_llama_tied, folder / "out")


@pytest.fixture
def model(tiny_llama_tied: Path) -> Iterator[Any]:
    with torch.inference_mode():
        yield load_plain(tiny_llama_tied)


def logits(model: Any, item: ScoredItem) -> torch.Tensor:
    ids = torch.tensor([[*item.prompt_ids, *item.target_ids[:-1]]])
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def scored(model: Any, item: ScoredItem) -> torch.Tensor:
    return logits(model, item)[0, len(item.prompt_ids) - 1 :]


def test_from_a_layer_on_is_the_whole_model(model: Any) -> None:
    whole = [logits(model, item) for item in ITEMS]
    first = states_after(model, ITEMS, 0, [None] * len(ITEMS))
    second = states_after(model, ITEMS, 1, first)
    layers = layers_of(model)
    for number, states in ((1, first), (2, second)):
        for item, state, wanted in zip(ITEMS, states, whole, strict=True):
            with running(layers, number, len(layers), state):
                assert logits(model, item).equal(wanted)
    assert logits(model, ITEMS[0]).equal(whole[0])  # the layers are themselves again


def test_one_module_alone_is_what_torch_says(
    tied: dict[str, Any], folder: Path, tiny_llama_tied: Path, model: Any
) -> None:
    name = "model.layers.1.mlp.down_proj"
    options = next(m["options"] for m in tied["modules"] if m["name"] == name)
    found = next(o for o in options if o["width"] == "w4-g32")
    data = folder / "out.jsonl"
    text = calibration_text(model, tiny_llama_tied, data, TASK, 1, 15, lambda _: None)
    items = text.items
    assert text.both
    assert len(items) == tied["items"] == 8
    before = [torch.log_softmax(scored(model, item).double(), -1) for item in items]
    module = model.get_submodule(name)
    module.weight.data = rounded_weight(name, module.weight.data, FOUR)
    after = [torch.log_softmax(scored(model, item).double(), -1) for item in items]
    kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)])
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-2)
    assert found["how"] == "measured"


def test_a_larger_model_is_measured_on_less_text_and_at_one_width() -> None:
    assert tokens_to_measure(3_000_000, 28) == (2048, True)
    assert tokens_to_measure(40_000_000, 100) == (1875, False)
    assert tokens_to_measure(500_000_000, 170) == (256, False)


def test_at_one_width_the_other_follows_from_its_noise(
    tied: dict[str, Any], tiny_llama_tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.sensitivity.text._MOST_OPERATIONS", 0)
    monkeypatch.setattr("edgetune.sensitivity.text._FEWEST_TOKENS", 1)
    monkeypatch.setattr("edgetune.sensitivity.text.FEWEST_POSITIONS", 8)
    found = measure(tiny_llama_tied, tmp_path / "out")
    assert found["items"] < tied["items"]
    for module, measured_too in zip(found["modules"], tied["modules"], strict=True):
        options = {o["width"]: o for o in module["options"]}
        own = {o["width"]: o for o in measured_too["options"]}["w8-g32"]
        is_head = module["name"] == "lm_head"
        assert options["w4-g32"]["how"] == "measured"
        assert options["w8-g32"]["how"] == ("measured" if is_head else "predicted")
        assert own["kl"] / 5 < options["w8-g32"]["kl"] < 5 * own["kl"]


def test_wider_costs_less_and_takes_more(tied: dict[str, Any]) -> None:
    for module in tied["modules"]:
        options = {o["width"]: o for o in module["options"]}
        assert options["fp32"]["kl"] == 0.0
        assert options["w8-g32"]["kl"] < 0.05 * options["w4-g32"]["kl"]
        assert options["w4-g32"]["kl"] < options["w4-g64"]["kl"]
        assert options["w4-g64"]["bytes"] < options["w4-g32"]["bytes"] < options["w8-g32"]["bytes"]
    assert tied["modules"][-1]["name"] == "lm_head"
    assert len(tied["modules"]) == 2 * 7 + 1


def test_adding_up_is_near_what_they_cost_together(tied: dict[str, Any]) -> None:
    assert len(tied["joint"]) >= 3
    for point in tied["joint"]:
        assert point["kl"] == pytest.approx(point["added"], rel=0.7)


def test_two_runs_and_one_layer_by_layer_say_the_same(
    tied: dict[str, Any], tiny_llama_tied: Path, tmp_path: Path
) -> None:
    assert measure(tiny_llama_tied, tmp_path / "layered", layered=True) == tied
    assert [p.name for p in (tmp_path / "layered").iterdir()] == [RESULT]


def test_fused_projections_and_a_head_of_its_own(tiny_phi3: Path, tmp_path: Path) -> None:
    found = measure(tiny_phi3, tmp_path / "out", calibration=None)
    names = [m["name"].removeprefix("model.layers.0.") for m in found["modules"]]
    assert {"self_attn.qkv_proj", "mlp.gate_up_proj", "lm_head"} <= set(names)
    assert found["source"] == "sampled text"


def test_calibration_data_that_is_too_short(tiny_llama: Path, tmp_path: Path) -> None:
    data = tmp_path / "short.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 8, encoding="utf-8")
    with pytest.raises(UsageError, match="calibration data too short: 16 scored tokens"):
        measure(tiny_llama, tmp_path / "out", calibration=str(data))


@pytest.mark.parametrize("rounds_inputs", [False, True])
@pytest.mark.parametrize("words", ["w4-g32", "w8-g64", "w4-g256"])
def test_the_noise_is_the_error_of_the_outputs(words: str, rounds_inputs: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Linear(96, 24, bias=False)
    module.weight.data = torch.randn(24, 96, generator=generator)
    inputs = torch.randn(4000, 96, generator=generator) * torch.linspace(0.1, 2, 96)
    width = parse_width(words, FOUR)
    assert width.group_size is not None
    with sums_of_inputs({"m": module}, (32, 64, 256) if rounds_inputs else ()) as sums:
        exact = module(inputs).detach()
    found = noise_energy("m", module.weight.data, width, sums["m"])
    module.weight.data = rounded_weight("m", module.weight.data, width)
    with rounding_inputs({module: width.group_size} if rounds_inputs else {}):
        error = module(inputs).detach() - exact
    assert found == pytest.approx(float(error.double().square().sum()), rel=0.05)
    assert found > 0


def test_inputs_are_rounded_in_groups_of_their_own() -> None:
    values = torch.cat([torch.linspace(-1, 1, 32), torch.full((8,), 100.0)])[None]
    rounded = rounded_to_8_bits(values, 32)
    assert (rounded[0, :32] - values[0, :32]).abs().max() <= 0.5 / 127 + 1e-6
    assert torch.equal(rounded[0, 32:], values[0, 32:])
    assert not torch.equal(rounded_to_8_bits(values, 64)[0, :32], rounded[0, :32])
    assert torch.equal(rounded_to_8_bits(torch.zeros(1, 32), 32), torch.zeros(1, 32))


def test_where_products_round_their_inputs_8_bits_cost_more(
    tied: dict[str, Any], tiny_llama_tied: Path, tmp_path: Path
) -> None:
    found = measure(tiny_llama_tied, tmp_path / "out", accuracy_level=4)
    for module, other in zip(found["modules"], tied["modules"], strict=True):
        own, its = ({o["width"]: o["kl"] for o in m["options"]} for m in (module, other))
        assert own["w8-g32"] > its["w8-g32"]


def test_where_gptq_rounds_modules_cost_what_it_leaves(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = measure(tiny_llama, tmp_path / "nearest")
    gptq = {"bits": 4, "group_size": 32, "algorithm": "gptq", "symmetric": True}
    found = measure(tiny_llama, tmp_path / "gptq", default=gptq)
    assert measure(tiny_llama, tmp_path / "layered", default=gptq, layered=True) == found
    # Text in many batches, side by side: the same sums but for their last digits.
    monkeypatch.setattr("edgetune.optimize.gptq.layers._BATCH_TOKENS", 1)
    batches = measure(tiny_llama, tmp_path / "batches", default=gptq)
    for one, other in zip(batches["modules"], found["modules"], strict=True):
        for option, same in zip(one["options"], other["options"], strict=True):
            assert option["kl"] == pytest.approx(same["kl"], rel=0.5, abs=1e-6)
    monkeypatch.setattr("edgetune.optimize.threads.usable_cores", lambda: 3)
    assert measure(tiny_llama, tmp_path / "threads", default=gptq) == batches
    costs = [
        {m["name"]: m["options"] for m in value["modules"] if "layers" in m["name"]}
        for value in (nearest, found)
    ]
    kl = [
        sum(next(o["kl"] for o in rows if o["width"] == "w4-g32") for rows in c.values())
        for c in costs
    ]
    assert 0 < kl[1] < 0.8 * kl[0]
    assert nearest["share_beside_others"] == 1.0
    assert found["share_beside_others"] not in (0.0, 1.0)
    assert len(found["joint"]) == 2
    added = [
        sum(
            {o["width"]: o["kl"] for o in m["options"]}[
                "w4-g32" if "layers" in m["name"] else "fp32"
            ]
            for m in value["modules"]
        )
        for value in (nearest, found)
    ]
    assert added[1] * found["share_beside_others"] < added[0]


def test_an_allocation_by_gptq_may_leave_modules_in_float(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    together = joint._together

    def watched(found: Any, allocation: Any) -> float:
        seen.append(set(allocation.widths.values()))
        return together(found, allocation)

    monkeypatch.setattr(joint, "_together", watched)
    monkeypatch.setattr(joint, "_SHARES_OF_GPTQ", (1.0, 1e-4))
    gptq = {"bits": 4, "group_size": 32, "algorithm": "gptq", "symmetric": True}
    most, least = measure(tiny_llama, tmp_path / "out", default=gptq)["joint"]
    assert "fp32" in seen[-1]
    assert len(seen[-1]) > 1
    assert least["kl"] < most["kl"]


def test_an_embedding_of_its_own_has_8_bits_or_more(tiny_llama: Path, tmp_path: Path) -> None:
    found = measure(tiny_llama, tmp_path / "out")
    options = {m["name"]: [o["width"] for o in m["options"]] for m in found["modules"]}
    assert all(not words.startswith("w4") for words in options["model.embed_tokens"])
    assert any(words.startswith("w4") for words in options["lm_head"])


def test_a_float_width_changes_nothing() -> None:
    weight, sums = torch.randn(4, 32), InputSums(torch.ones(32).double(), {})
    assert rounded_weight("m", weight, parse_width("fp32", FOUR)) is weight
    assert noise_energy("m", weight, parse_width("fp32", FOUR), sums) == 0.0
    assert np.isfinite(noise_energy("m", weight, FOUR, sums))
