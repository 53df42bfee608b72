"""What an adapter changed in each module, and what storing it took, against plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetune.merge import changes as changes_module
from edgetune.merge.changes import Change, modules_of
from tests.adapter_kinds import KINDS, make_kind
from tests.merge.merged import NF4_DOUBLE, merge
from tests.tiny import make_adapter

WEIGHTS = "model.safetensors"


def by_name(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in facts["all_modules"]}


def test_the_sums_are_those_of_whole_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "_CHUNK_VALUES", 12)
    make = torch.Generator().manual_seed(0)
    base, delta = (torch.randn(10, 4, generator=make) for _ in range(2))
    merged = base + delta / 100
    stored = merged.to(torch.bfloat16)
    change = Change("a.b.weight")
    for start, stop in ((0, 7), (7, 10)):
        rows = (merged[start:stop], stored[start:stop])
        change.add_block(lambda f, t: base[f:t], 10, start, *rows)
    found = change.as_json()
    assert (found["name"], found["values"]) == ("a.b", 40)
    assert found["delta_relative"] == pytest.approx(
        float((merged - base).norm() / base.norm()), rel=1e-3
    )
    assert found["rounding_relative"] == pytest.approx(
        float((stored.float() - merged).norm() / (merged - base).norm()), rel=1e-3
    )


def test_rows_that_the_base_does_not_have_are_not_compared() -> None:
    base, merged = torch.ones(2, 3), torch.cat([torch.ones(2, 3) * 2, torch.full((4, 3), 9.0)])
    change = Change("lm_head.weight")
    change.add_block(lambda f, t: base[f:t], 2, 0, merged, merged)
    assert (change.values, change.as_json()["delta_relative"]) == (6, 1.0)


def test_nothing_changed_has_no_share_that_was_lost() -> None:
    same = torch.ones(2, 2)
    change = Change("x.bias")
    change.add(same, same, same.half())
    assert change.as_json() == {
        "name": "x.bias", "values": 4, "delta_relative": 0.0, "rounding_relative": None,
    }  # fmt: skip


def test_those_come_first_that_lost_most() -> None:
    rows = [Change("much", 1, 1.0, 1.0, 0.0), Change("little", 1, 1.0, 0.01, 0.0),
            Change("lost", 1, 1.0, 1.0, 0.25)]  # fmt: skip
    assert [row["name"] for row in modules_of(rows)] == ["lost", "little", "much"]


@pytest.mark.parametrize("merge_dtype", ["float32", "base"])
def test_of_a_lora_every_module_is_told(tiny_llama: Path, tmp_path: Path, merge_dtype: str) -> None:
    targets = ["q_proj", "down_proj"]
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", target_modules=targets)
    facts = merge(tmp_path / "out", tiny_llama, [adapter], merge_dtype=merge_dtype)
    exact = tmp_path / "out"
    if merge_dtype == "base":
        exact = tmp_path / "exact"
        merge(exact, tiny_llama, [adapter])
    base, merged = load_file(tiny_llama / WEIGHTS), load_file(exact / WEIGHTS)
    stored = load_file(tmp_path / "out" / WEIGHTS)
    found = by_name(facts)
    assert found.keys() == {
        n.removesuffix(".weight") for n in base if any(target in n for target in targets)
    }
    for name, row in found.items():
        own, new = base[f"{name}.weight"].float(), merged[f"{name}.weight"]
        delta = (new - own).norm()
        assert row["delta_relative"] == pytest.approx(float(delta / own.norm()), rel=1e-3)
        lost = (stored[f"{name}.weight"].float() - new).norm() / delta
        assert row["rounding_relative"] == pytest.approx(float(lost), rel=1e-3)
        assert (row["rounding_relative"] > 0) == (merge_dtype == "base")


def test_over_a_4_bit_base_it_is_measured_from_what_the_adapter_saw(
    tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", target_modules=["q_proj"])
    onto = {
        how: by_name(merge(tmp_path / how, tiny_llama, [adapter], trained_as=NF4_DOUBLE, onto=how))
        for how in ("dequantized", "original")
    }
    # the other linears were 4-bit too and are stored anew, but no adapter changed them
    assert all("q_proj" in name for name in onto["dequantized"])
    plain = merge(tmp_path / "plain", tiny_llama, [adapter])
    assert onto["original"] == by_name(plain)
    for name, row in onto["dequantized"].items():
        assert row["delta_relative"] == pytest.approx(
            onto["original"][name]["delta_relative"], rel=0.05
        )


def test_a_type_that_is_merged_whole_is_told_too(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_kind(tiny_llama, KINDS["LoHa"], tmp_path / "adapter")
    facts = merge(tmp_path / "out", tiny_llama, [adapter])
    base, merged = load_file(tiny_llama / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    found = by_name(facts)
    assert len(found) == 6
    for name, row in found.items():
        own, new = base[f"{name}.weight"].float(), merged[f"{name}.weight"]
        expected = float((new - own).norm() / own.norm())
        assert row["delta_relative"] == pytest.approx(expected, rel=1e-3)


def test_a_full_fine_tune_changes_nothing_here(tiny_llama: Path, tmp_path: Path) -> None:
    assert merge(tmp_path / "out", tiny_llama)["all_modules"] == []
