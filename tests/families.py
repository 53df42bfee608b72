"""One tiny random model for each base family, made so that what a family has of its own shows.

Multipliers differ from one, soft caps are low enough to bend, windows are shorter than the texts,
norms are random, and the width is no square where embeddings are scaled by its root: a graph that
loses one of them gives other logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune.files import dump_json, read_json, write_text
from tests.tiny import build_base

SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Tiny:
    """How a family's tiny model is made, and what an adapter on it targets."""

    stands_for: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = SEPARATE
    # A text as long as this crosses what the model's positions turn on.
    long: int = 0
    # What config.json says in its place as published for transformers 4; None: nothing.
    published: dict[str, Any] = field(default_factory=dict)


_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope", "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.05 * n for n in range(pairs)],
        "long_factor": [1.5 + 0.7 * n for n in range(pairs)],
        "original_max_position_embeddings": 4096,
    }  # fmt: skip


FAMILIES: dict[str, Tiny] = {
    "llama": Tiny(
        "Llama 3.1, 3.2", "llama",
        {"rope_parameters": _LLAMA3, "max_position_embeddings": 512, "tie_word_embeddings": True},
        published={
            "rope_parameters": None, "rope_theta": 500000.0,
            "rope_scaling": {k: v for k, v in _LLAMA3.items() if k != "rope_theta"},
        },
    ),
    "smollm2": Tiny(
        "SmolLM, SmolLM2", "llama", {"tie_word_embeddings": True}, published={"architectures": None}
    ),
    "llama-linear": Tiny(
        "Llama with linear scaling", "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "qwen2-yarn": Tiny(
        "Qwen2.5 with YaRN", "qwen2",
        {"rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
            "original_max_position_embeddings": 64,
        }},
    ),
    "smollm3": Tiny(
        "SmolLM3", "smollm3",
        {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    ),
    "phi3-mini-4k": Tiny("Phi-3-mini-4k", "phi3", {"sliding_window": 24}, FUSED),
    "phi3-medium-128k": Tiny(
        "Phi-3 and Phi-3.5 mini, Phi-3-medium, 128k", "phi3",
        {"rope_parameters": _longrope(8), "max_position_embeddings": 8192,
         "original_max_position_embeddings": 4096, "sliding_window": 16384},
        FUSED, 4100,
        published={
            "rope_parameters": None, "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "longrope", **{n: _longrope(8)[n] for n in ("short_factor", "long_factor")}
            },
        },
    ),
    "phi4-mini": Tiny(
        "Phi-4-mini", "phi3",
        {"rope_parameters": {**_longrope(24), "partial_rotary_factor": 0.75},
         "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1,
         "max_position_embeddings": 8192, "original_max_position_embeddings": 4096,
         "tie_word_embeddings": True},
        FUSED, 4100,
    ),
    "qwen2": Tiny("Qwen2, Qwen2.5", "qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": Tiny(
        "Qwen2 with windows", "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1,
         "num_hidden_layers": 3},
    ),
    "qwen3": Tiny("Qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral": Tiny("Mistral", "mistral", {"sliding_window": 24, "head_dim": 32}),
    "gemma": Tiny("Gemma", "gemma", {"hidden_size": 96, "head_dim": 32}),
    "gemma2": Tiny(
        "Gemma-2", "gemma2",
        {"hidden_size": 96, "head_dim": 32, "query_pre_attn_scalar": 40, "sliding_window": 24,
         "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "num_hidden_layers": 3},
    ),
    "gemma3": Tiny(
        "Gemma-3 270M, 1B", "gemma3_text",
        {"hidden_size": 96, "head_dim": 32, "query_pre_attn_scalar": 40, "sliding_window": 24,
         "num_hidden_layers": 3,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3-scaled": Tiny(
        "the text part of Gemma-3 4B and larger", "gemma3_text",
        {"hidden_size": 96, "head_dim": 32, "query_pre_attn_scalar": 40, "sliding_window": 24,
         "num_hidden_layers": 3,
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
         },
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        published={
            "rope_parameters": None, "layer_types": None, "sliding_window_pattern": 2,
            "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "granite": Tiny(
        "Granite 3.x dense", "granite",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.15, "residual_multiplier": 0.3,
         "logits_scaling": 2.5, "tie_word_embeddings": True},
    ),
    "olmo": Tiny("OLMo 1", "olmo"),
}  # fmt: skip


def build_family(folder: Path, name: str, *, published: bool = False) -> Path:
    """The tiny base of a family of `FAMILIES`; its config.json as published with `published`."""
    tiny = FAMILIES[name]
    build_base(folder, tiny.model_type, **tiny.config)
    if published and tiny.published:
        config = {**read_json(folder / "config.json"), **tiny.published}
        kept = {key: value for key, value in config.items() if value is not None}
        write_text(folder / "config.json", dump_json(kept))
    return folder
