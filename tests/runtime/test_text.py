"""Text is normalized as the model's own tokenizer does it, before onnxruntime-genai sees it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgetune.runtime.session import OpenPackage
from edgetune.runtime.text import encode, normal_forms

DECOMPOSED, COMPOSED = "e\u0301", "\u00e9"
NFC = {"type": "NFC"}


def opened(folder: Path, settings: Any) -> OpenPackage:
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = SimpleNamespace(encode=lambda text: [ord(c) for c in text])
    variant = SimpleNamespace(folder=folder)
    return cast("OpenPackage", SimpleNamespace(variant=variant, tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("normalizer", "forms"),
    [
        (None, []),
        (NFC, ["NFC"]),
        ({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}]}, ["NFKD"]),
        ({"type": "Sequence", "normalizers": None}, []),
        ({"type": "Prepend", "prepend": "_"}, []),
    ],
)
def test_forms_are_read_from_the_tokenizer(tmp_path: Path, normalizer: Any, forms: Any) -> None:
    assert normal_forms(opened(tmp_path, {"normalizer": normalizer})) == forms


def test_text_is_normalized_where_the_model_was_trained_so(tmp_path: Path) -> None:
    assert encode(opened(tmp_path, {"normalizer": NFC}), DECOMPOSED) == [ord(c) for c in COMPOSED]
    assert encode(opened(tmp_path, {}), DECOMPOSED) == [ord(c) for c in DECOMPOSED]
    assert encode(opened(tmp_path, []), DECOMPOSED) == [ord(c) for c in DECOMPOSED]


def test_a_package_without_tokenizer_json_normalizes_nothing(tmp_path: Path) -> None:
    package = opened(tmp_path, {})
    (tmp_path / "tokenizer.json").unlink()
    assert normal_forms(package) == []
