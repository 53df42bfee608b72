"""Addresses: what is one, what is none."""

from __future__ import annotations

import pytest

from edgetune.errors import UsageError
from edgetune.remote.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://pi@10.0.0.7:2222", Address("10.0.0.7", "pi", 2222)),
        ("ssh://board", Address("board")),
        ("ssh://Bench-Pi_4/", Address("Bench-Pi_4")),
        ("ssh://me@[fe80::1%eth0]:22", Address("fe80::1%eth0", "me", 22)),
    ],
)
def test_an_address(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text.rstrip("/")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pi@board", "no address of a host"),
        ("http://board", "no address of a host"),
        ("ssh://", "no address of a host"),
        ("ssh://board:99999", "no address of a host"),
        ("ssh://me:secret@board", "a password has no place"),
        ("ssh://board/home/me", "more than a host"),
        ("ssh://-oProxyCommand=x", "no name of a host"),
        ("ssh://-l@board", "no name of a host or user"),
        ("ssh://a b", "no name of a host"),
        ("ssh://board;reboot", "no name of a host"),
    ],
)
def test_what_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as why:
        parse_address(text)
    assert "secret" not in f"{why.value.message} {why.value.hint}"
