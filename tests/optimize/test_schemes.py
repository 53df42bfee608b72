"""Scheme rows, their names, and what is refused."""

from __future__ import annotations

import pytest

from edgetune.errors import UsageError
from edgetune.optimize.schemes import (
    DEFAULT_SCHEME,
    SCHEMES,
    check_group_size,
    find_scheme,
    parse_scheme,
    variant_name,
)

CPU = "CPUExecutionProvider"


def test_rows_are_whole() -> None:
    assert DEFAULT_SCHEME == "w8a16-rtn"
    for name, row in SCHEMES.items():
        assert name == row.name
        assert row.providers
        assert row.passes
        assert (row.group_size is None) == (row.algorithm is None) == (not row.group_sizes)
        assert row.group_size is None or row.group_size in row.group_sizes


def test_a_near_miss_is_told_the_name() -> None:
    with pytest.raises(UsageError, match="no scheme is called 'w8a16'") as raised:
        find_scheme("w8a16")
    assert raised.value.hint == "did you mean 'w8a16-rtn'?"
    with pytest.raises(UsageError) as raised:
        find_scheme("magic")
    assert raised.value.hint == "the schemes are fp32, w8a16-rtn, w4a16-rtn, auto"


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
    with pytest.raises(UsageError, match="names another group size"):
        parse_scheme("w8a16-rtn-g128", 64)
    with pytest.raises(UsageError, match="takes no group size 7"):
        parse_scheme("w8a16-rtn-g7")
