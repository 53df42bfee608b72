"""Which models are refused before the builder gets them wrong."""

from __future__ import annotations

from typing import Any

import pytest

from edgetune.optimize.forms.decoder import export_problem, make_expectations
from edgetune.optimize.schemes import SCHEMES, make_widths

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

LONGROPE = {
    "model_type": "phi3",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "longrope"},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": None, "rope_scaling": None},
        {"head_dim": 128},
        {"head_dim": 128, "rope_parameters": {"partial_rotary_factor": 0.75}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        LONGROPE,
        {**LONGROPE, "sliding_window": 262144},
        {**LONGROPE, "original_max_position_embeddings": 131072},
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_theta": 10000.0}}},
        {"model_type": "olmo", "clip_qkv": None},
    ],
)
def test_what_is_exported_right(changes: dict[str, Any]) -> None:
    assert export_problem({**LLAMA, **changes}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}},
            "kind 'dynamic' cannot be",
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, "kind 'longrope' cannot be exported"),
        ({"rope_scaling": {"type": "su"}, "rope_parameters": None}, "now called 'longrope'"),
        ({**LONGROPE, "original_max_position_embeddings": 2048}, "change at 2048 tokens, and onn"),
        ({**LONGROPE, "sliding_window": 2047}, "a cache with a sliding window cannot be computed"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "dynamic"},
                    "sliding_attention": {},
                }
            },
            "kind 'dynamic' cannot be",
        ),
        ({"model_type": "olmo", "clip_qkv": 8.0}, "clip_qkv is lost"),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            "reads in both direct",
        ),
        ({"num_attention_heads": "4"}, "config.json holds a value of the wrong kind"),
        ({"rope_parameters": [1]}, "config.json holds a value of the wrong kind"),
        ({"num_attention_heads": 8}, "heads of size 8 "),
        ({"head_dim": 40}, "heads of size 40 "),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "0.5 of it rotated"),
    ],
)
def test_what_would_be_wrong_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in (export_problem({**LLAMA, **changes}) or "")


def test_a_float_graph_is_expected_without_quantization() -> None:
    wanted = make_expectations(SCHEMES["fp32"], make_widths(SCHEMES["fp32"]), tied=False)
    assert wanted.pop("last_token_head") is True
    assert wanted.pop("embedding") == "float32"
    assert set(wanted.values()) == {None}


def test_tied_embeddings_are_expected_in_the_heads_form() -> None:
    shared = {
        name: make_expectations(row, make_widths(row, layers=4), tied=True)["embedding"]
        for name, row in SCHEMES.items()
    }
    assert shared["fp32"] == "float32, shared with the head"
    assert shared["w8a16-rtn"] == "int8, shared with the head"
    assert shared["w4a16-rtn"] == "int4, shared with the head"
    assert shared["w4a16-rtn-h8"] == "int8, shared with the head"


def test_an_embedding_of_its_own_is_expected_in_its_form() -> None:
    own = {
        name: make_expectations(row, make_widths(row, layers=4), tied=False)["embedding"]
        for name, row in SCHEMES.items()
    }
    assert own.pop("fp32") == "float32"
    assert own.pop("fp16") == "float16"
    assert set(own.values()) == {"int8"}
    kept = make_widths(SCHEMES["w4a16-rtn"], None, {"embed_tokens": "fp32"})
    assert make_expectations(SCHEMES["w4a16-rtn"], kept, tied=False)["embedding"] == "float32"
