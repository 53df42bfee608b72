"""Text to tokens as the model's own tokenizer does it.

onnxruntime-genai 0.18 does not apply the Unicode normalization that a tokenizer.json asks for
(Qwen2's asks for NFC): "é" written as two code points then becomes other tokens than in training.
What reads text through this module is right; a program that calls onnxruntime-genai itself must
normalize, and the report says so.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from edgetune.files import read_json

if TYPE_CHECKING:
    from edgetune.runtime.session import OpenPackage

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def encode(opened: OpenPackage, text: str) -> list[int]:
    """The tokens of a text. Raises RuntimeError where onnxruntime-genai refuses it."""
    for form in normal_forms(opened):
        text = unicodedata.normalize(form, text)
    return [int(token) for token in opened.tokenizer.encode(text)]


def normal_forms(opened: OpenPackage) -> list[Form]:
    """The Unicode normal forms that the package's tokenizer.json asks for, in order."""
    where = opened.variant.folder / "tokenizer.json"
    settings = read_json(where) if where.is_file() else {}
    return list(_forms(settings.get("normalizer") if isinstance(settings, dict) else None))


def _forms(normalizer: Any) -> Iterator[Form]:
    if not isinstance(normalizer, Mapping):
        return
    if normalizer.get("type") in _FORMS:
        yield cast("Form", normalizer["type"])
    for part in normalizer.get("normalizers") or []:
        yield from _forms(part)
