"""What each field of PEFT's LoraConfig means for a merge. Standard library only.

A test holds this table against LoraConfig itself: every field is either used, harmless or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Change the merged weights, and are honoured.
USED = frozenset({
    "alpha_pattern", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save",
    "peft_type", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora",
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
    "kasa_config": "KaSA is not supported yet",
    "layer_replication": "replicated layers are not supported yet",
    "megatron_config": "Megatron's parallel layers are not supported",
    "monteclora_config": "MonteCLoRA is not supported yet",
    "target_parameters": "LoRA on bare parameters (mixtures of experts) is not supported yet",
    "trainable_token_indices": "trained single tokens are not supported yet",
    "use_bdlora": "block-diagonal LoRA is not supported yet",
    "use_qalora": "QALoRA is not supported yet",
    "velora_config": "VeLoRA is not supported yet",
}
# Initializations that move a part of the base's weight into the adapter: merged onto the plain
# base, that part would count twice. EVA, orthogonal and gaussian leave the base as it is.
MODIFY_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")

_RESIDUAL_HINT = (
    "convert it in training code with PEFT's save_pretrained(path_initial_model_for_weight_"
    "conversion=…), which writes a plain LoRA adapter (init_lora_weights true)"
)


def refusal(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(why, hint) when this adapter_config.json cannot be merged rightly, else None."""
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        why = f"peft_type {peft_type} is not supported yet; supported are LoRA and DoRA (LORA)"
        return why, "merge it with PEFT where you trained it, and build from the merged model"
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        hint = "name an adapter that was trained to generate text"
        return f"task_type {task} is no text-generation adapter (CAUSAL_LM)", hint
    for field, why in REFUSED.items():
        if config.get(field):
            return f"{field}: {why}", "train without this option, or merge it where you trained it"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(MODIFY_BASE):
        why = f"init_lora_weights {init!r} moved a part of the base's weights into the adapter"
        return why, _RESIDUAL_HINT
    return None


def type_problem(config: Mapping[str, Any]) -> str | None:
    """The first field of a LoRA adapter_config.json whose type is wrong, as a sentence."""
    rules: dict[str, tuple[Any, str]] = {
        "r": (_is_rank, "a whole number from 1"),
        "lora_alpha": (_is_number, "a number"),
        "rank_pattern": (lambda v: _is_mapping(v, _is_rank), "a mapping of whole numbers from 1"),
        "alpha_pattern": (lambda v: _is_mapping(v, _is_number), "a mapping of numbers"),
        "target_modules": (_are_names, "a name, a pattern or a list of names"),
        "modules_to_save": (_are_names, "a list of names"),
        "bias": (lambda v: v in ("none", "all", "lora_only"), "none, all or lora_only"),
        "base_model_name_or_path": (lambda v: isinstance(v, str), "text"),
        "exclude_modules": (_are_names, "a name, a pattern or a list of names"),
        "layers_pattern": (_are_names, "a name or a list of names"),
        "layers_to_transform": (_are_layers, "a number or a list of numbers"),
        **{
            flag: (lambda v: isinstance(v, bool), "true or false")
            for flag in ("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out")
        },
    }
    for field, (fits, meant) in rules.items():
        value = config.get(field)
        if value is not None and not fits(value):
            return f"{field} is {_short(value)}, not {meant}"
    return None


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields that this version knows nothing of, sorted: PEFT drops them too."""
    return sorted(config.keys() - USED - HARMLESS - REFUSED.keys())


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # float32 holds its products


def _is_mapping(value: Any, fits: Any) -> bool:
    return isinstance(value, dict) and all(fits(v) for v in value.values())


def _are_layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(type(v) is int and 0 <= v < 1 << 16 for v in numbers)


def _short(value: Any) -> str:
    """A value for a message; a number may have more digits than Python prints."""
    try:
        return repr(value)
    except ValueError:
        return "too large a number"


def _are_names(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(v, str) for v in value)
    )
