"""Scheme rows, their names, and what is refused."""

from __future__ import annotations

import pytest

from edgetune.errors import UsageError
from edgetune.optimize.rounding import ROUNDERS
from edgetune.optimize.schemes import (
    DEFAULT_SCHEME,
    SCHEMES,
    check_group_size,
    find_scheme,
    make_widths,
    parse_scheme,
    sensitive_layers,
    variant_name,
)
from edgetune.optimize.widths import FLOAT

CPU = "CPUExecutionProvider"


def test_rows_are_whole() -> None:
    assert DEFAULT_SCHEME == "w8a16-rtn"
    for name, row in SCHEMES.items():
        assert name == row.name
        assert row.providers or name == "fp16"
        assert row.algorithm is None or row.algorithm in {*ROUNDERS, "gptq"}
        assert row.passes
        assert (row.group_size is None) == (row.algorithm is None) == (not row.group_sizes)
        assert row.group_size is None or row.group_size in row.group_sizes


def test_a_near_miss_is_told_the_name() -> None:
    with pytest.raises(UsageError, match="no scheme is called 'w8a16'") as raised:
        find_scheme("w8a16")
    assert raised.value.hint == "did you mean 'w8a16-rtn'?"
    with pytest.raises(UsageError) as raised:
        find_scheme("magic")
    assert raised.value.hint == f"the schemes are {', '.join([*SCHEMES, 'auto'])}"


def test_group_sizes_are_never_rounded() -> None:
    assert check_group_size(SCHEMES["w4a16-rtn"], None) == 32
    assert check_group_size(SCHEMES["w4a16-rtn"], 256) == 256
    with pytest.raises(UsageError, match="takes no group size 100") as raised:
        check_group_size(SCHEMES["w4a16-rtn"], 100)
    assert raised.value.hint == "choose one of 16, 32, 64, 128, 256"
    with pytest.raises(UsageError, match="fp32 quantizes nothing"):
        check_group_size(SCHEMES["fp32"], 32)


def test_variant_names() -> None:
    assert variant_name(CPU, "w8a16-rtn") == "cpu-w8a16-rtn"
    assert variant_name(CPU, "w8a16-rtn", 32) == "cpu-w8a16-rtn"
    assert variant_name(CPU, "w8a16-rtn", 128) == "cpu-w8a16-rtn-g128"
    assert variant_name(CPU, "fp32") == "cpu-fp32"


def test_a_group_size_may_be_part_of_the_name() -> None:
    assert parse_scheme("w8a16-rtn-g128") == (SCHEMES["w8a16-rtn"], 128)
    assert parse_scheme("w8a16-rtn", 64) == (SCHEMES["w8a16-rtn"], 64)
    assert parse_scheme("fp32") == (SCHEMES["fp32"], None)
    assert parse_scheme("w4a16-rtn-h8-g64") == (SCHEMES["w4a16-rtn-h8"], 64)
    with pytest.raises(UsageError, match="names another group size"):
        parse_scheme("w8a16-rtn-g128", 64)
    with pytest.raises(UsageError, match="takes no group size 7"):
        parse_scheme("w8a16-rtn-g7")


def names(scheme: str, *modules: str, layers: int = 16) -> list[str]:
    widths = make_widths(
        SCHEMES[scheme], layers=layers, changed=("model.layers.0.self_attn.q_proj",)
    )
    return [widths.of(module).name for module in modules]


def test_which_modules_have_eight_bits() -> None:
    q, v = (f"model.layers.{{}}.self_attn.{name}_proj" for name in "qv")
    down, up = (f"model.layers.{{}}.mlp.{name}_proj" for name in ("down", "up"))
    ends = ("lm_head", "model.embed_tokens")
    four, eight = "w4-g32", "w8-g32"
    assert names("w8a16-rtn", *ends, q.format(0)) == [eight] * 3
    assert names("w4a16-rtn", *ends, q.format(0)) == [four, eight, four]
    assert names("w4a16-rtn-h8", *ends, q.format(0)) == [eight, eight, four]
    # 16 layers: the first and the last two, and every third between.
    one, two, four_ = (tuple(m.format(n) for m in (q, v, down, up)) for n in (1, 2, 4))
    assert names("w4a16-kquant-mixed", *ends, *one) == [eight] * 5 + [four]
    assert names("w4a16-kquant-mixed", *ends, *two) == [eight] * 2 + [four] * 4
    assert names("w4a16-kquant-mixed", *four_) == [eight] * 3 + [four]
    assert names("w4a16-kquant-selective", *ends, *two) == [eight] * 2 + [four, eight, eight, four]
    assert names("nf4a16", *ends, q.format(0), q.format(1)) == [eight] * 3 + ["nf4-g64"]
    assert names("fp16", *ends, q.format(0)) == ["fp16"] * 3


def test_a_protected_embedding_comes_first() -> None:
    widths = make_widths(SCHEMES["w8a16-rtn"], 128, {"embed_tokens": "fp32"})
    assert widths.of("model.embed_tokens") == FLOAT
    assert make_widths(SCHEMES["w8a16-rtn"], 128).of("model.embed_tokens").name == "w8-g128"


def test_rules_that_go_by_layers_need_their_number() -> None:
    with pytest.raises(ValueError, match="the number of layers is not known"):
        make_widths(SCHEMES["w4a16-kquant-mixed"])


@pytest.mark.line
@pytest.mark.parametrize("layers", [1, 2, 4, 24, 30, 32])
def test_sensitive_layers_are_the_builders(layers: int) -> None:
    from onnxruntime_genai.models.builders.base import Model

    class Empty:
        num_layers = layers

    Model.make_matmul_mixed_precision(Empty, {"mixed_layers": "int8"})
    theirs = {int(name.split("/")[2].split(".")[1]) for name in Empty.int4_customized_weight_config}  # type: ignore[attr-defined]
    assert sensitive_layers(layers) == sorted(theirs)
