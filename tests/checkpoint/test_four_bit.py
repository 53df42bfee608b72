"""4-bit weights: the same as transformers and bitsandbytes give, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checkpoint.four_bit import four_bit_modules, four_bit_weight
from edgetune.checkpoint.trained import load_base_alone
from tests.tiny import build_base, build_four_bit

KINDS = [
    {"type": kind, "double_quant": double, "compute_dtype": "bfloat16"}
    for kind in ("nf4", "fp4")
    for double in (False, True)
]


@pytest.mark.parametrize("trained_as", KINDS, ids=str)
def test_equals_what_transformers_loads(
    trained_as: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    stored = build_four_bit(
        tiny_llama, tmp_path / "base", trained_as["type"], trained_as["double_quant"]
    )
    for folder, given in ((tiny_llama, trained_as), (stored, None)):
        base = read_checkpoint(folder)
        names = four_bit_modules(base, given)
        assert len(names) == 14
        model = load_base_alone(folder, given, [])
        for name, module in model.named_modules():
            if name in names:
                ours = four_bit_weight(base, name, given)
                assert ours.dtype == module.weight.dtype == torch.float32
                assert ours.equal(module.weight), name
            else:
                assert type(module).__name__ != "Linear4bit"


def test_is_not_rounded_to_the_compute_type(tiny_llama: Path) -> None:
    base = read_checkpoint(tiny_llama)
    weight = four_bit_weight(base, "model.layers.0.mlp.up_proj", KINDS[1])
    assert not weight.equal(weight.to(torch.bfloat16).float())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_float32_input_gives_the_codes_of_bfloat16_input(kind: str) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight = (torch.randn(96, 128, generator=torch.Generator().manual_seed(3)) * 0.05).bfloat16()
    for double in (False, True):
        one, other = (
            quantize_4bit(w, blocksize=64, compress_statistics=double, quant_type=kind)
            for w in (weight, weight.float())
        )
        assert one[0].equal(other[0])
        assert one[1].absmax.equal(other[1].absmax)


def test_a_tied_head_stays_as_it_is(tiny_llama_tied: Path) -> None:
    names = four_bit_modules(read_checkpoint(tiny_llama_tied), KINDS[0])
    assert len(names) == 14
    assert "lm_head" not in names


def test_plain_base_has_none(tiny_llama: Path) -> None:
    assert four_bit_modules(read_checkpoint(tiny_llama), None) == frozenset()


def test_rows_that_are_no_multiple_of_the_block(tmp_path: Path) -> None:
    base = build_base(tmp_path / "b", tokenizer=False, hidden_size=40, intermediate_size=72)
    model = load_base_alone(base, KINDS[1], [])
    found = read_checkpoint(base)
    for name in four_bit_modules(found, KINDS[1]):
        ours = four_bit_weight(found, name, KINDS[1])
        assert ours.equal(model.get_submodule(name).weight), name
