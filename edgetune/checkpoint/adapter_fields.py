"""What the fields of an adapter_config.json mean for a merge. Standard library only.

LoRA's fields are told apart: a test holds this table against LoraConfig itself, every field is
either used, harmless or refused. Of the other types (`peft_types`) the fields are known and go to
PEFT as they are; those few that forbid a merge are refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgetune.checkpoint.config_fields import short
from edgetune.checkpoint.peft_types import COMMON_FIELDS, TYPES

# Change the merged weights, and are honoured.
USED = frozenset({
    "alpha_pattern", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_bias", "modules_to_save", "monteclora_config", "peft_type", "r", "rank_pattern",
    "target_modules", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora",
    "use_rslora", "velora_config",
})  # fmt: skip
# Matter while training, or describe: no effect on the trained weights' meaning.
HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode",
    "init_lora_weights", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
})  # fmt: skip
# Refused by name when set.
REFUSED = {
    "alora_invocation_tokens": "aLoRA is switched on in mid-sequence; no merged weight can",
    "arrow_config": "Arrow routes between adapters at run time; no merged weight can",
    "megatron_config": "Megatron's parallel layers are not supported",
    "use_qalora": "PEFT has no merge for QALoRA, which adapts GPTQ weights",
}
# Make LoRA another layer: merged whole by PEFT's own layer, as the other types are.
VARIANTS = ("kasa_config", "monteclora_config", "target_parameters", "use_bdlora", "velora_config")
# Initializations that move a part of the base's weight into the adapter: merged onto the plain
# base, that part would count twice. EVA, MiCA, orthogonal and gaussian leave the base as it is.
MODIFY_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# More than any model has: each one repeated takes time and memory before the merge begins.
_MOST_LAYERS = 4096
_RESIDUAL_HINT = (
    "convert it in training code with PEFT's save_pretrained(path_initial_model_for_weight_"
    "conversion=…), which writes a plain LoRA adapter; or name the residual base that was saved "
    "with it, and set init_lora_weights to true in its adapter_config.json"
)


def refusal(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(why, hint) when this adapter_config.json cannot be merged rightly, else None."""
    peft_type = config.get("peft_type")
    kind = TYPES.get(str(peft_type))
    if kind is None:
        why = f"peft_type {peft_type} is none that PEFT 0.21 knows"
        return why, "merge it with the PEFT that trained it, and build from the merged model"
    if kind.refusal:
        return f"peft_type {peft_type} ({kind.label}): {kind.refusal}", kind.hint
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        hint = "name an adapter that was trained to generate text"
        return f"task_type {task} is no text-generation adapter (CAUSAL_LM)", hint
    if config.get("sample_at_inference"):
        why = "sample_at_inference: its weights are drawn anew for each input; no merged weight can"
        return why, "train with sample_at_inference false"
    if peft_type not in ("LORA", "ADALORA"):
        return None
    for field, why in REFUSED.items():
        if config.get(field):
            return f"{field}: {why}", "train without this option, or merge it where you trained it"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(MODIFY_BASE):
        why = f"init_lora_weights {init!r} moved a part of the base's weights into the adapter"
        return why, _RESIDUAL_HINT
    return None


def is_plain_lora(config: Mapping[str, Any]) -> bool:
    """True for LoRA and DoRA as they are by themselves: A and B over a linear or an embedding."""
    return config.get("peft_type") == "LORA" and not any(config.get(v) for v in VARIANTS)


def known_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of this type's own that PEFT's config class takes, those without a value left
    out. What all types have in common names files, hubs and modules: none of it bears on a merge.
    """
    taken = TYPES[str(config["peft_type"])].fields
    if config["peft_type"] in ("LORA", "ADALORA"):
        taken -= HARMLESS  # some of them ask for training data when a layer is made
    return {k: v for k, v in config.items() if k in taken and v is not None}


def type_problem(config: Mapping[str, Any]) -> str | None:
    """The first field of an adapter_config.json whose type is wrong, as a sentence. Of types other
    than LoRA only what this package reads itself is looked at; PEFT judges the rest."""
    rules = {**_RULES, **(_LORA_RULES if config.get("peft_type") == "LORA" else {})}
    for field, (fits, meant) in rules.items():
        value = config.get(field)
        if value is not None and not fits(value):
            return f"{field} is {short(value)}, not {meant}"
    return None


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields that this version knows nothing of, sorted: PEFT drops them too."""
    kind = TYPES.get(str(config.get("peft_type")))
    known = kind.fields if kind and not kind.refusal else config.keys()
    return sorted(config.keys() - known - COMMON_FIELDS)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # float32 holds its products


def _is_mapping(value: Any, fits: Any) -> bool:
    return isinstance(value, dict) and all(fits(v) for v in value.values())


def _are_layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(type(v) is int and 0 <= v < 1 << 16 for v in numbers)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int for v in value)


def _are_ranges(value: Any) -> bool:
    if not isinstance(value, list) or not all(_are_numbers(v) and len(v) == 2 for v in value):
        return False
    count: int = sum(max(0, stop - start) for start, stop in value)
    return count <= _MOST_LAYERS


def _are_tokens(value: Any) -> bool:
    return _are_numbers(value) or _is_mapping(value, _are_numbers)


def _are_names(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(v, str) for v in value)
    )


_Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
_NUMBERS = (lambda v: _is_mapping(v, _is_number), "a mapping of numbers")
_RULES: _Rules = {
    "r": (_is_size, "a whole number"),
    "target_modules": (_are_names, "a name, a pattern or a list of names"),
    "exclude_modules": (_are_names, "a name, a pattern or a list of names"),
    "feedforward_modules": (_are_names, "a name, a pattern or a list of names"),
    "modules_to_save": (_are_names, "a list of names"),
    "layers_pattern": (_are_names, "a name or a list of names"),
    "layers_to_transform": (_are_layers, "a number or a list of numbers"),
    "layer_replication": (_are_ranges, f"a list of pairs of layers, {_MOST_LAYERS} in all at most"),
    # AdaLoRA keeps for each matrix which of its ranks are left
    "rank_pattern": (lambda v: isinstance(v, dict), "a mapping"),
    "alpha_pattern": _NUMBERS,
    "block_size_pattern": _NUMBERS,
    "lambda_pattern": _NUMBERS,
    "n_frequency_pattern": _NUMBERS,
    "base_model_name_or_path": (lambda v: isinstance(v, str), "text"),
}
_LORA_RULES: _Rules = {
    "r": (_is_rank, "a whole number from 1"),
    "lora_alpha": (_is_number, "a number"),
    "rank_pattern": (lambda v: _is_mapping(v, _is_rank), "a mapping of whole numbers from 1"),
    "target_parameters": (_are_names, "a list of names"),
    "trainable_token_indices": (_are_tokens, "a list of numbers, or one for each module"),
    "bias": (lambda v: v in ("none", "all", "lora_only"), "none, all or lora_only"),
    **{
        flag: (lambda v: isinstance(v, bool), "true or false")
        for flag in ("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out")
    },
}
