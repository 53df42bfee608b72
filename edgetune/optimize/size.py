"""How large a graph and its memory will be, from shapes alone. Predicted, not measured.

Standard library only: a plan asks before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgetune.checkpoint.folder import EMBEDDING, HEAD
from edgetune.optimize.widths import Stored, Widths

_FLOAT_BYTES = 4
# Of the graph without its weights: nodes and names of one layer (measured: 7.7 to 8.3 kB), and what
# multiplies the scales of one matrix out.
_NODES_BYTES, _SCALES_NODES_BYTES = 8_000, 500
# onnxruntime-genai with nothing open, and what a byte of weights and a scale, however it is stored,
# come to when a graph is opened: the file is read, and the products' weights are laid out anew for
# the kernels (measured; see docs/performance.md).
_RUNTIME_BYTES = 95_000_000
_WEIGHTS, _A_SCALE = 1.45, 13.2


def predict_graph_bytes(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], tied: bool, widths: Widths
) -> Stored:
    """What model.onnx and its data take, of a checkpoint with these config.json and tensors.

    The embedding stays in float32 unless a rule names it, or it is tied to the head, whose width it
    then has.
    """
    total = _rotary_bytes(config) + _NODES_BYTES * (int(config.get("num_hidden_layers") or 0) + 1)
    scales = groups = 0
    for name, shape in shapes.items():
        if tied and name == HEAD and EMBEDDING in shapes:
            continue
        if len(shape) != 2:
            total += math.prod(shape) * _FLOAT_BYTES
            continue
        width = widths.of((HEAD if name == EMBEDDING else name).removesuffix(".weight"))
        if name == EMBEDDING and not tied:
            width = widths.of_embedding()
        stored = width.stored(*shape)
        total, scales, groups = total + stored.total, scales + stored.scales, groups + stored.groups
        total += _SCALES_NODES_BYTES if width.scales_in_steps else 0
    return Stored(total, scales, groups)


def predict_memory_bytes(graph: Stored) -> int:
    """The largest resident set of a process that opens the graph and answers shortly."""
    weights = graph.total - graph.scales
    return _RUNTIME_BYTES + int(_WEIGHTS * weights + _A_SCALE * graph.groups)


def cache_bytes_per_token(config: Mapping[str, Any], kv_cache: str = "float32") -> int:
    """What one token of context adds: keys and values of every layer. Of an 8-bit cache old and
    new are both held, since onnxruntime-genai does not share the buffer."""
    heads = int(config.get("num_attention_heads") or 1)
    key_value_heads = int(config.get("num_key_value_heads") or heads)
    layers = int(config.get("num_hidden_layers") or 0)
    held = 2 if kv_cache == "int8" else _FLOAT_BYTES
    return 2 * layers * key_value_heads * _head_size(config) * held


def _rotary_bytes(config: Mapping[str, Any]) -> int:
    """Tables of cosines and sines, one row a position; LongRoPE has a second, shorter pair."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    positions = int(config.get("max_position_embeddings") or 0)
    if rope.get("rope_type", rope.get("type")) == "longrope":
        positions += int(config.get("original_max_position_embeddings") or 0)
    # Gemma 3 rotates its local layers by another base.
    tables = 2 if str(config.get("model_type")).startswith("gemma3") else 1
    return tables * positions * int(_head_size(config) * share) * _FLOAT_BYTES


def _head_size(config: Mapping[str, Any]) -> int:
    heads = int(config.get("num_attention_heads") or 1)
    return int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
