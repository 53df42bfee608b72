"""The fields of a base's config.json that the line reads, of the right type and size. Standard
library only; transformers judges the rest when the merge builds the model's skeleton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Sizes that a model can have: what is beyond would only take memory and time to be refused.
_SIZES = {
    "head_dim": 1 << 16, "hidden_size": 1 << 20, "intermediate_size": 1 << 22,
    "max_position_embeddings": 1 << 31, "num_attention_heads": 1 << 16,
    "num_hidden_layers": 1 << 16, "num_key_value_heads": 1 << 16,
    "original_max_position_embeddings": 1 << 31, "vocab_size": 1 << 24,
}  # fmt: skip
_DTYPES = ("float64", "float32", "float16", "bfloat16", "auto")


def config_problem(config: Mapping[str, Any], tensors: int) -> str | None:
    """The first field that is not what it must be, as a sentence; None when all are.

    `tensors`: how many are stored; a layer has at least one.
    """
    for field, most in _SIZES.items():
        value = config.get(field)
        if value is not None and not (type(value) is int and 0 < value <= most):
            return f"{field} is {short(value)}, not a whole number from 1 to {most}"
    layers = config.get("num_hidden_layers")
    if layers is not None and layers > tensors:
        return f"num_hidden_layers is {layers}, and only {tensors} tensors are stored"
    for field, fits, meant in _RULES:
        value = config.get(field)
        if value is not None and not fits(value):
            return f"{field} is {short(value)}, not {meant}"
    for field in ("rope_parameters", "rope_scaling"):
        if problem := _rope_problem(config.get(field) or {}):
            return f"{field}.{problem}"
    return None


def _rope_problem(rope: Mapping[str, Any]) -> str | None:
    for field, value in rope.items():
        if field in ("rope_type", "type") and not isinstance(value, str):
            return f"{field} is {short(value)}, not text"
        if field == "partial_rotary_factor" and not _is_share(value):
            return f"{field} is {short(value)}, not a number from 0 to 1"
        if field == "original_max_position_embeddings" and not _is_context(value):
            return f"{field} is {short(value)}, not a whole number"
        if isinstance(value, dict) and (problem := _rope_problem(value)):  # of a type of layer
            return f"{field}.{problem}"
    return None


def _is_context(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1 << 31 and value == int(value)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in _DTYPES


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("_name_or_path", _is_text, "text"),
    ("architectures", _are_texts, "a list of names"),
    ("dtype", _is_dtype, f"one of {', '.join(_DTYPES)}"),
    ("partial_rotary_factor", _is_share, "a number from 0 to 1"),
    ("quantization", _is_mapping, "a mapping"),
    ("quantization_config", _is_mapping, "a mapping"),
    ("rope_parameters", _is_mapping, "a mapping"),
    ("rope_scaling", _is_mapping, "a mapping"),
    ("tie_word_embeddings", lambda value: isinstance(value, bool), "true or false"),
    ("torch_dtype", _is_dtype, f"one of {', '.join(_DTYPES)}"),
)


def short(value: Any) -> str:
    """A value for a message; a number may have more digits than Python prints."""
    try:
        text = repr(value)
    except ValueError:
        return "too large a number"
    return text if len(text) <= 80 else f"{text[:80]}…"
