"""How a decoder becomes an ONNX graph: by onnxruntime-genai's builder, which writes attention with
its key-value cache, and the quantized products, as ONNX Runtime's own operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.optimize.schemes import Scheme
from edgetune.providers import find_provider


def make_passes(scheme: Scheme, group_size: int | None, provider: str) -> dict[str, Any]:
    """The Olive passes in order, {name: pass}. Options have the names that the builder reads.

    The logits are those of the last position alone (`prune_lm_head`): generation needs no others,
    and the head's product over a whole prompt is a third of the prefill (measured).
    """
    options: dict[str, Any] = {
        "precision": scheme.precision,
        "execution_provider": find_provider(provider).BUILDER_NAME,
        "prune_lm_head": True,
    }
    if scheme.algorithm is not None:
        # `default` is ONNX Runtime's own rounding to nearest, which pads a last short block.
        options |= {
            "algo_config": "default",
            "block_size": group_size,
            "is_symmetric": True,
            "accuracy_level": scheme.accuracy_level,
        }
    (name,) = scheme.passes
    return {"builder": {"type": name, "config": options}}


def make_expectations(scheme: Scheme, group_size: int | None) -> dict[str, Any]:
    """What the graph must show when it is read back; see `optimize.read_back`."""
    quantized = scheme.algorithm is not None
    return {
        "weight_bits": scheme.weight_bits if quantized else None,
        "group_size": group_size,
        "accuracy_level": scheme.accuracy_level,
        "symmetric": True if quantized else None,
        "last_token_head": True,
    }


def export_problem(config: Mapping[str, Any]) -> str | None:
    """Why the builder, or ONNX Runtime's attention, would get a model of this config.json wrong;
    None when it is known to be right.

    The builder ignores every scaling of a Llama's rotary embeddings but Llama 3's own, silently
    (linear by 4: KL 0.09 on random weights); the attention kernel rotates only heads of certain
    sizes, and says so when it runs, not when it is opened.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if config.get("model_type") == "llama" and kind not in ("default", "llama3", "linear"):
        return f"rotary embeddings of the kind {kind!r} are lost when a Llama is exported"
    heads = config.get("num_attention_heads") or 1
    head_size = config.get("head_dim") or config.get("hidden_size", 0) // heads
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if head_size % 16 or int(head_size * share) % 16:
        return (
            f"attention heads of size {head_size} ({share:g} of it rotated) have no kernel: "
            "both must be multiples of 16"
        )
    return None
