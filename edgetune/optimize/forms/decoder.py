"""How a decoder becomes an ONNX graph: by onnxruntime-genai's builder, which writes attention with
its key-value cache, and the quantized products, as ONNX Runtime's own operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.optimize.schemes import Scheme
from edgetune.optimize.widths import Widths
from edgetune.providers import find_provider

# Kinds of rotary embeddings whose tables do not depend on the length of the text.
_ROTARY_KINDS = ("default", "linear", "llama3", "yarn")
# Where onnxruntime-genai computes the cache of a Phi-3 again (written into it).
_LONGROPE_LENGTH = 4096
# Filled in when the workflow runs: token ids of calibration text, the codes that a pass makes
# of them for the builder, and the scales of an 8-bit key-value cache.
CALIBRATION, CODES, CACHE_SCALES = "<calibration>", "<codes>", "<cache scales>"


def make_passes(scheme: Scheme, widths: Widths, provider: str, kv_cache: str) -> dict[str, Any]:
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
        # The builder's own words for what `widths` says of most modules.
        options |= {
            "algo_config": "default",
            "block_size": widths.default.group_size,
            "is_symmetric": widths.default.symmetric,
            "accuracy_level": scheme.accuracy_level,
            "widths": widths.as_json(),
        }
    if kv_cache == "int8":
        options["kv_cache_quant_scheme"] = "int8_per_channel"
        options["kv_cache_scale_file"] = CACHE_SCALES
    *before, builder = scheme.passes
    if before:
        options["codes"] = CODES
    found = {"calibration": CALIBRATION, "codes": CODES, "widths": options.get("widths")}
    passes = {name.lower(): {"type": name, "config": dict(found)} for name in before}
    return {**passes, "builder": {"type": builder, "config": options}}


def make_expectations(
    scheme: Scheme, widths: Widths, tied: bool, kv_cache: str = "float32"
) -> dict[str, Any]:
    """What the graph must show when it is read back, the products' widths aside; see
    `optimize.read_back`.

    Tied embeddings are stored once, in the head's form.
    """
    width = widths.of("lm_head") if tied else widths.of_embedding()
    form = f"int{width.bits}" if width.quantized else f"float{width.bits}"
    return {
        "accuracy_level": scheme.accuracy_level,
        "last_token_head": True,
        "embedding": f"{form}, shared with the head" if tied else form,
        **({"kv_cache": kv_cache} if kv_cache != "float32" else {}),
    }


def export_problem(config: Mapping[str, Any]) -> str | None:
    """Why the builder, ONNX Runtime or onnxruntime-genai would get a model of this config.json
    wrong; None when it is known to be right.

    The attention kernel rotates only heads of certain sizes, and says so when it runs, not when it
    is opened. onnxruntime-genai computes a LongRoPE model's cache again where it changes its tables
    at 4096 tokens, whatever the model says, and cannot where a window has dropped what it needs.
    """
    try:
        return _problem(config)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as why:
        return f"config.json holds a value of the wrong kind ({why})"


def _problem(config: Mapping[str, Any]) -> str | None:
    for rope in _rotary_settings(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "su":
            return "rotary embeddings of the kind 'su' are now called 'longrope': rename them"
        known = (
            (*_ROTARY_KINDS, "longrope") if config.get("model_type") == "phi3" else _ROTARY_KINDS
        )
        if kind not in known:
            return f"rotary embeddings of the kind {kind!r} cannot be exported for this family"
        if kind == "longrope" and (reason := _longrope_problem(config, rope)):
            return reason
        if reason := _kernel_problem(config, rope):
            return reason
    if config.get("clip_qkv") is not None:
        return "clip_qkv is lost when an OLMo is exported: its attention would be another"
    if config.get("use_bidirectional_attention"):
        return "use_bidirectional_attention: it reads in both directions and is no decoder"
    return None


def _rotary_settings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rotary parameters of config.json; one for each type of layer where they are nested."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested: list[Mapping[str, Any]] = [v for v in rope.values() if isinstance(v, dict)]
    return nested or [rope]


def _longrope_problem(config: Mapping[str, Any], rope: Mapping[str, Any]) -> str | None:
    context = config.get("max_position_embeddings") or 0
    stated = config.get("original_max_position_embeddings")
    original = stated or rope.get("original_max_position_embeddings") or _LONGROPE_LENGTH
    if context <= original:
        return None
    if original != _LONGROPE_LENGTH:
        return (
            f"its rotary embeddings change at {original} tokens, and onnxruntime-genai computes "
            f"its cache again at {_LONGROPE_LENGTH}"
        )
    if 0 < (config.get("sliding_window") or 0) < context:
        return "a cache with a sliding window cannot be computed again where LongRoPE changes"
    return None


def _kernel_problem(config: Mapping[str, Any], rope: Mapping[str, Any]) -> str | None:
    heads = config.get("num_attention_heads") or 1
    head_size = config.get("head_dim") or config.get("hidden_size", 0) // heads
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if head_size % 16 or int(head_size * share) % 16:
        return (
            f"attention heads of size {head_size} ({share:g} of it rotated) have no kernel: "
            "both must be multiples of 16"
        )
    return None
