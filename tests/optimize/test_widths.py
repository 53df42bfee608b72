"""Widths: how they are written, which module has which, and the bytes they take."""

from __future__ import annotations

import json

import pytest

from edgetune.errors import UsageError
from edgetune.optimize.schemes import SCHEMES, make_widths
from edgetune.optimize.widths import (
    FLOAT,
    Width,
    check_rule,
    parse_width,
    unused_rules,
    widths_from_json,
)

FOUR, EIGHT = Width(4, 32, "rtn"), Width(8, 32, "rtn")


@pytest.mark.parametrize(
    ("words", "default", "width"),
    [
        ("fp32", FOUR, FLOAT),
        ("w8", FOUR, EIGHT),
        ("w8-g64", FOUR, Width(8, 64, "rtn")),
        ("w4", Width(8, 128, "rtn"), Width(4, 128, "rtn")),
    ],
)
def test_what_a_width_says(words: str, default: Width, width: Width) -> None:
    assert parse_width(words, default) == width
    assert width.name in (words, f"{words}-g{width.group_size}")


@pytest.mark.parametrize("words", ["", "8", "w3", "w8-g33", "w8g32", "fp16", "W8", "w8-g64 "])
def test_what_is_no_width(words: str) -> None:
    with pytest.raises(UsageError, match="is no width"):
        parse_width(words, FOUR)


@pytest.mark.parametrize("words", ["", "v proj", ".v_proj", "v_proj.", "*", "a/b", "v-proj"])
def test_what_names_no_module(words: str) -> None:
    with pytest.raises(UsageError, match="names no module"):
        check_rule(words)


def test_the_first_rule_that_fits_counts() -> None:
    protect = {"layers.1.mlp.down_proj": "fp32", "down_proj": "w8", "lm_head": "w8-g64"}
    widths = make_widths(SCHEMES["w4a16-rtn"], None, protect)
    assert widths.of("model.layers.1.mlp.down_proj") == FLOAT
    assert widths.of("model.layers.11.mlp.down_proj") == EIGHT  # not the end of a name: 1 is not 11
    assert widths.of("model.layers.0.mlp.up_proj") == FOUR
    assert widths.of("lm_head").group_size == 64
    assert widths.of("other_lm_head") == FOUR
    assert widths_from_json(json.loads(json.dumps(widths.as_json()))) == widths


def test_rules_that_no_module_has_are_told() -> None:
    widths = make_widths(SCHEMES["w4a16-rtn"], None, {"v_proj": "w8", "query": "w8"})
    modules = ["model.layers.0.self_attn.v_proj", "lm_head", "model.embed_tokens"]
    assert unused_rules(widths, modules) == ["query"]


@pytest.mark.parametrize(
    ("width", "found"),
    [
        (FLOAT, (4 * 3 * 40, 0, 0)),
        # Two groups of 32 a row: the second is filled up.
        (EIGHT, (3 * 64 + 3 * 2 * 4, 24, 6)),
        (FOUR, (3 * 32 + 3 * 2 * 4, 24, 6)),
        (Width(4, 32, "rtn", symmetric=False), (3 * 32 + 24 + 3, 24, 6)),
        (Width(8, 32, "rtn", symmetric=False), (3 * 64 + 24 + 6, 24, 6)),
        # A byte a group, a float32 a row.
        (Width(4, 32, "gptq", scale_bits=8), (3 * 32 + 6 + 3 * 4, 18, 6)),
    ],
)
def test_bytes(width: Width, found: tuple[int, int, int]) -> None:
    assert width.stored(3, 40) == found
