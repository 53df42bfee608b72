"""Completes what the builder wrote: generation settings, end-of-sequence tokens and chat template
are made those of the checkpoint, as Hugging Face's `generate` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import StepFailedError
from edgetune.files import dump_json, read_json, write_text

# Settings that onnxruntime-genai knows, and the values of transformers' GenerationConfig where a
# checkpoint states none. The builder reads only some of them, and not `repetition_penalty`.
_SEARCH_DEFAULTS: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What a generation_config.json says besides settings.
_NO_SETTINGS = ("_from_model_config", "transformers_version", "use_cache", "cache_implementation")
_NEUTRAL: tuple[Any, ...] = (None, False, [], {}, "")
_REQUIRED = ("genai_config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json")
# What transformers notes in tokenizer_config.json of how the tokenizer was loaded.
_LOADING_NOTES = ("is_local", "local_files_only", "name_or_path")


def complete_folder(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Make the settings of a genai folder equal to the checkpoint's.

    Returns facts: `generation_set` (what the builder had otherwise, {key: [had, set]}),
    `generation_not_carried` (settings that onnxruntime-genai does not know). Raises StepFailedError
    when a file that onnxruntime-genai needs is absent.
    """
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        msg = f"the builder wrote no {', '.join(missing)}"
        raise StepFailedError(msg, "the step's log has all that the builder wrote")
    config = read_json(checkpoint / "config.json")
    stated = checkpoint / "generation_config.json"
    generation = read_json(stated) if stated.is_file() else {}
    genai = read_json(folder / "genai_config.json")
    changed = settle_generation(genai, config, generation, tokenizer_end_token(folder))
    write_text(folder / "genai_config.json", dump_json(genai))
    _settle_tokenizer(folder / "tokenizer_config.json")
    template = chat_template_of(checkpoint)
    if template is not None:
        write_text(folder / "chat_template.jinja", template)
    return {"generation_set": changed, "generation_not_carried": not_carried(generation)}


def settle_generation(
    genai: dict[str, Any],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    end_token: int | None,
) -> dict[str, list[Any]]:
    """Change `genai` (a genai_config.json) to what the checkpoint states.

    Settings are those of generation_config.json, or of config.json where there is no such file
    (older checkpoints keep them there); a token that the first lacks is the second's, and one that
    neither names stays as the builder took it from the tokenizer. An answer also ends at the
    tokenizer's own end token (`end_token`), with which chat models end a turn. Returns
    {changed key: [builder's value, value set]}.
    """
    tokens = {**_present(config), **_present(generation)}
    stated = _present(generation or config)
    model, search = genai["model"], genai["search"]
    wanted_model = {key: tokens[key] for key in _TOKENS if key in tokens}
    if "eos_token_id" in tokens:
        wanted_model["eos_token_id"] = _end_tokens(tokens["eos_token_id"], end_token)
    wanted = {key: stated.get(key, default) for key, default in _SEARCH_DEFAULTS.items()}
    # transformers takes a text here too ("never"); onnxruntime-genai a truth value.
    wanted["early_stopping"] = wanted["early_stopping"] is True
    context = model["context_length"]
    wanted["max_length"] = min(int(stated.get("max_length", context)), context)
    return {**_set(model, wanted_model), **_set(search, wanted)}


def _end_tokens(stated: int | list[int], own: int | None) -> int | list[int]:
    found = list(stated) if isinstance(stated, list) else [stated]
    found += [own] if own is not None and own not in found else []
    return found[0] if len(found) == 1 else found


def tokenizer_end_token(folder: Path) -> int | None:
    """The id of the tokenizer's own end-of-sequence token; None when it names none."""
    token = read_json(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    tokenizer = read_json(folder / "tokenizer.json")
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    known = {**(vocabulary if isinstance(vocabulary, dict) else {}), **added}
    return known.get(text)


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _set(section: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, list[Any]]:
    changed = {
        key: [section.get(key), value]
        for key, value in wanted.items()
        if key not in section or _as_set(section[key]) != _as_set(value)
    }
    section.update(wanted)
    return changed


def _as_set(value: Any) -> Any:
    """End tokens mean the same in any order."""
    return sorted(value) if isinstance(value, list) else value


def not_carried(generation: Mapping[str, Any]) -> list[str]:
    """Settings of a generation_config.json that onnxruntime-genai does not know, sorted."""
    known = {*_SEARCH_DEFAULTS, *_TOKENS, *_NO_SETTINGS, "max_length"}
    return sorted(
        key for key, value in generation.items() if key not in known and value not in _NEUTRAL
    )


def chat_template_of(checkpoint: Path) -> str | None:
    """The chat template as the checkpoint has it: in a file of its own, or in the tokenizer's
    configuration (one template, or the one named `default`); None when it has none."""
    own_file = checkpoint / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_bytes().decode("utf-8")
    tokenizer = checkpoint / "tokenizer_config.json"
    template = read_json(tokenizer).get("chat_template") if tokenizer.is_file() else None
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _settle_tokenizer(path: Path) -> None:
    config = read_json(path)
    kept = {key: value for key, value in config.items() if key not in _LOADING_NOTES}
    write_text(path, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
