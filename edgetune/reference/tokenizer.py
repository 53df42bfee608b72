"""The base's own tokenizer, its end-of-sequence tokens and its generation settings.

A tokenizer here is a transformers one, taken from the base's folder; code that a folder brings is
never run. The adapter's folder is not asked: what ships is the base's tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.errors import InputRefusedError, UsageError
from edgetune.files import read_json

# What a runtime reads of generation_config.json; null where the base leaves it to the library.
_SETTINGS = (
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "length_penalty",
    "num_beams",
    "max_length",
    "max_new_tokens",
    "min_length",
)
# Templates that print the date would give other bytes every day: a macro of the same name takes
# the place of transformers' function, which no argument can.
_DATE = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%A": "Friday", "%a": "Fri"}
_DATE |= {"%Y": "2024", "%y": "24", "%H": "12", "%M": "00", "%S": "00"}
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{code}', '{value}')" for code, value in _DATE.items())
    + " }}{%- endmacro -%}"
)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint. Raises InputRefusedError when there is none to load."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as why:
        first = str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__
        msg = f"{folder}: the tokenizer cannot be loaded ({first})"
        hint = "put tokenizer.json and tokenizer_config.json beside the weights"
        raise InputRefusedError(msg, hint) from why


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text with what the tokenizer puts before it (BOS), not after it."""
    plain: list[int] = tokenizer.encode(text, add_special_tokens=False)
    full: list[int] = tokenizer.encode(text)
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start] + plain
    return plain


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text as it stands: a rendered chat brings its own BOS."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of token ids, special tokens left out, as onnxruntime-genai gives it."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer can render a chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
) -> str:
    """A chat as text. Raises UsageError where there is no template or it refuses these turns."""
    if not has_template(tokenizer):
        msg = "the base has no chat template, so `messages` cannot be rendered"
        raise UsageError(msg, "give `prompt` and `completion` as text, or a base with a template")
    try:
        fixed = _FIXED_DATE + tokenizer.get_chat_template() if uses_date(tokenizer) else None
        text: str = tokenizer.apply_chat_template(
            [dict(turn) for turn in messages],
            chat_template=fixed,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as why:
        msg = f"the base's chat template refuses these turns ({why})"
        raise UsageError(msg, "give the turns the roles and the order that it expects") from why
    return text


def uses_date(tokenizer: Any) -> bool:
    """Whether the chat template prints today's date, which the reference keeps fixed."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", "") or "")


def eos_token_ids(folder: Path, tokenizer: Any) -> list[int]:
    """Every token that ends an answer, sorted: those of generation_config.json, else of
    config.json, and the tokenizer's own (what onnxruntime-genai's builder puts together too).

    Raises InputRefusedError when nothing names one.
    """
    found = _ids(_generation(folder).get("eos_token_id")) or _ids(
        read_config(folder).get("eos_token_id")
    )
    found |= _ids(tokenizer.eos_token_id)
    if not found:
        msg = f"{folder}: no end-of-sequence token is named, an answer would never end"
        raise InputRefusedError(msg, "set eos_token_id in generation_config.json")
    return sorted(found)


def generation_settings(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """What the base says of generation, for comparison with what the package says."""
    given = _generation(folder)
    settings: dict[str, Any] = {name: given.get(name) for name in _SETTINGS}
    settings["context_length"] = context_length(folder)
    settings["bos_token_id"] = tokenizer.bos_token_id
    settings["pad_token_id"] = tokenizer.pad_token_id
    return settings


def context_length(folder: Path) -> int | None:
    """How many tokens the model takes; null where its config does not say."""
    config = read_config(folder)
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; of a model with several parts, its text part."""
    config = read_json(folder / "config.json")
    config = config if isinstance(config, dict) else {}
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _generation(folder: Path) -> dict[str, Any]:
    """Older checkpoints have no generation_config.json and keep the settings in config.json."""
    path = folder / "generation_config.json"
    settings = read_json(path if path.is_file() else folder / "config.json")
    return settings if isinstance(settings, dict) else {}


def _ids(value: Any) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {v for v in values if isinstance(v, int) and not isinstance(v, bool)}
