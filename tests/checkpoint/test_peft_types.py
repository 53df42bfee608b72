"""The table of adapter types against PEFT itself."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from edgetune.checkpoint.adapter_fields import known_fields, refusal, unknown_fields
from edgetune.checkpoint.peft_types import COMMON_FIELDS, TYPES, label_of, merged_types

MERGED = [name for name, row in TYPES.items() if row.refusal is None]
REFUSED = [name for name, row in TYPES.items() if row.refusal is not None]


def test_every_type_of_peft_is_in_the_table() -> None:
    from peft import PeftType

    assert set(TYPES) == {str(kind.value) for kind in PeftType}


@pytest.mark.parametrize("name", MERGED)
def test_every_field_of_a_merged_type_is_known(name: str) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[name])}
    assert fields == TYPES[name].fields | COMMON_FIELDS
    assert not TYPES[name].fields & COMMON_FIELDS


def layer_merges(name: str) -> bool:
    """True when PEFT has a layer of this type whose merge does something."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner = PEFT_TYPE_TO_TUNER_MAPPING[name]
    layer = getattr(tuner, "tuner_layer_cls", None)
    if layer is None:
        return False
    module = inspect.getmodule(layer)
    merges = [
        value.merge
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, layer)
    ]
    return any("NotImplementedError" not in inspect.getsource(merge) for merge in merges)


def test_what_peft_can_merge_is_merged() -> None:
    """AdaMSS alone is refused for another reason: it needs a library that a build has not."""
    can = {name for name in TYPES if layer_merges(name)}
    assert can == {*MERGED, "ADAMSS"}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_types_say_what_they_learned(name: str) -> None:
    why, hint = refusal({"peft_type": name, "task_type": "CAUSAL_LM"}) or ("", "")
    assert why == f"peft_type {name} ({TYPES[name].label}): {TYPES[name].refusal}"
    assert hint


def test_a_type_of_the_future() -> None:
    why, hint = refusal({"peft_type": "NEXT"}) or ("", "")
    assert why == "peft_type NEXT is none that PEFT 0.21 knows"
    assert "with the PEFT that trained it" in hint
    assert label_of("NEXT") == "NEXT"


def test_fields_that_forbid_a_merge() -> None:
    config: dict[str, Any] = {"peft_type": "PVERA", "sample_at_inference": True}
    assert "sample_at_inference: its weights are drawn" in (refusal(config) or ("",))[0]
    assert refusal({**config, "sample_at_inference": False}) is None
    assert "megatron_config" in (
        refusal({"peft_type": "ADALORA", "megatron_config": {}}) or ""
    ) or (refusal({"peft_type": "ADALORA", "megatron_config": {"a": 1}}))


def test_known_and_unknown_fields() -> None:
    config = {"peft_type": "IA3", "target_modules": ["a"], "r": 3, "revision": None, "x": 1}
    assert known_fields(config) == {"target_modules": ["a"]}
    assert unknown_fields(config) == ["r", "x"]
    lora = {"peft_type": "LORA", "eva_config": {"rho": 2}, "r": 4}
    assert known_fields(lora) == {"r": 4}
    assert unknown_fields(lora) == []
    assert unknown_fields({"peft_type": "NEXT", "x": 1}) == []


def test_labels() -> None:
    assert {"LoRA", "LoHa", "IA3", "VeRA", "RandLoRA"} <= set(merged_types())
    assert "X-LoRA" not in merged_types()
