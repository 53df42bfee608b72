"""Placement, chat and description of a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError, UsageError
from edgetune.runtime import chat as chat_module
from edgetune.runtime import placement as placement_module
from edgetune.runtime.chat import Chat, open_chat
from edgetune.runtime.describe import describe_package, graph_bytes, package_bytes
from edgetune.runtime.placement import placement
from edgetune.runtime.session import OpenPackage
from tests.tiny import VOCABULARY
from tests.tiny_package import VARIANT, copy_of


def test_every_node_is_on_the_cpu(opened: OpenPackage) -> None:
    found = placement(opened)
    assert found["requested"] == found["used"] == ["CPUExecutionProvider"]
    assert found["coverage"] == 1.0
    assert found["nodes"]["CPUExecutionProvider"] > 10


def test_a_partial_placement_is_a_share(
    opened: OpenPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"CPUExecutionProvider": 3, "OtherExecutionProvider": 1}
    monkeypatch.setattr(placement_module, "_nodes_by_provider", lambda _: counts)
    assert placement(opened)["coverage"] == 0.75
    assert placement(opened)["used"] == ["CPUExecutionProvider", "OtherExecutionProvider"]


def test_an_unknown_placement_is_null_with_a_reason(
    opened: OpenPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: OpenPackage) -> Any:
        msg = "not recorded\nin this build"
        raise RuntimeError(msg)

    monkeypatch.setattr(placement_module, "_nodes_by_provider", refuse)
    found = placement(opened)
    assert found["coverage"] is None
    assert found["reason"] == "ONNX Runtime does not tell: not recorded"
    monkeypatch.setattr(placement_module, "_nodes_by_provider", lambda _: {})
    assert placement(opened)["reason"] == "ONNX Runtime named no node"


def test_a_chat_streams_whole_characters(
    opened: OpenPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the 汉字 answer 😀"
    given: list[Any] = []

    def answer(*arguments: Any) -> Any:
        given.extend(arguments)
        return iter([int(token) for token in opened.tokenizer.encode(text)])

    monkeypatch.setattr(chat_module, "generate", answer)
    pieces = list(Chat(opened).stream("hi", 10))
    assert "".join(pieces) == text
    assert "汉" in pieces
    assert given == [opened, Chat(opened).prompt_ids("hi"), 10]


def test_a_prompt_goes_through_the_chat_template(opened: OpenPackage) -> None:
    chat = Chat(opened)
    raw = [int(token) for token in opened.tokenizer.encode("hi")]
    assert chat.prompt_ids("hi", raw=True) == raw
    rendered = [int(token) for token in opened.tokenizer.encode("<|user|>hi<|end|><|assistant|>")]
    assert chat.prompt_ids("hi") == rendered
    assert sum(len(piece) for piece in chat.stream("hi", 5)) <= 5


@pytest.mark.parametrize(
    ("text", "message"), [("  ", "is empty"), ("a\0b", "NUL"), ("\udcff", "not UTF-8")]
)
def test_a_prompt_that_is_no_text_is_refused(opened: OpenPackage, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Chat(opened).prompt_ids(text)


def test_open_chat_refuses_what_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="not a package"):
        open_chat(tmp_path)


def test_a_package_is_described_without_opening_it(package: Path) -> None:
    found = describe_package(package)
    assert (found["kind"], found["name"], found["problems"]) == ("package", "tiny", [])
    assert found["variants"][0]["name"] == VARIANT
    assert found["variants"][0]["vocabulary_size"] == VOCABULARY
    assert [d["name"] for d in found["devices"]] == ["generic-x86-64", "this-machine"]
    assert found["provenance"]["base"] == "base"
    assert found["self_test"]["items"] == 6


def test_sizes_leave_reports_out(package: Path, tmp_path: Path, opened: OpenPackage) -> None:
    copy = copy_of(package, tmp_path / "p")
    before = package_bytes(copy)
    (copy / "reports").mkdir()
    (copy / "reports" / "x.json").write_text("{}")
    assert package_bytes(copy) == before
    names = ("model.onnx", "model.onnx.data")
    expected = sum((package / VARIANT / name).stat().st_size for name in names)
    assert graph_bytes(opened.variant) == expected < before


def test_a_tampered_package_is_not_described(package: Path, tmp_path: Path) -> None:
    copy = copy_of(package, tmp_path / "p")
    (copy / "extra.txt").write_text("x")
    with pytest.raises(InputRefusedError, match=r"extra\.txt"):
        describe_package(copy)
