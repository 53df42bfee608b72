"""Scales of an 8-bit key-value cache: what the trained model's keys and values reach on text.

Each channel of a head has a scale of its own, threshold / 128 (onnxruntime-genai's builder reads
scales so). Keys are stored rotated, and a pair of rotated channels (i, i + half) turns with the
position: its threshold is the pair's largest length, which holds at every position, however short
the text was. Values have the largest magnitude of each channel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgetune.files import write_text
from edgetune.reference.measure import deterministic

FILE = "cache_scales.json"
_LEVELS = 128
# Of a channel that is always zero: any scale does, and none may be 0.
_SMALLEST = 1e-6


def write_cache_scales(
    model: Any, texts: Sequence[Sequence[int]], out: Path, progress: Callable[[str], None]
) -> None:
    """Write `cache_scales.json` as onnxruntime-genai's builder reads it: {scales: {k_scales,
    v_scales: [layer][heads · head size]}, layer_ids}. `texts`: token ids.

    On one thread: sums that several share depend on how many there are, and a graph must not.
    """
    rotated = _rotated(model.config.get_text_config())
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    with deterministic(1), torch.inference_mode():
        for number, text in enumerate(texts, 1):
            progress(f"key-value cache: text {number} of {len(texts)}")
            cache = model(torch.tensor([list(text)]), use_cache=True).past_key_values
            for layer, held in enumerate(cache.layers):
                reached = _lengths(held.keys[0], rotated), held.values[0].abs().amax(1)
                if layer == len(keys):
                    keys.append(reached[0])
                    values.append(reached[1])
                keys[layer] = torch.maximum(keys[layer], reached[0])
                values[layer] = torch.maximum(values[layer], reached[1])
    scales = {"k_scales": _scales(keys), "v_scales": _scales(values)}
    write_text(out / FILE, json.dumps({"scales": scales, "layer_ids": list(range(len(keys)))}))


def _rotated(config: Any) -> int:
    """How many channels of a head rotate."""
    heads = int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    return int(size * (share or 1.0))


def _lengths(keys: torch.Tensor, rotated: int) -> torch.Tensor:
    """[heads, size] of keys [heads, tokens, size]: what each channel reaches at any position."""
    half = rotated // 2
    first, second = keys[..., :half], keys[..., half:rotated]
    pair = torch.hypot(first, second).amax(1)
    return torch.cat([pair, pair, keys[..., rotated:].abs().amax(1)], -1)


def _scales(reached: Sequence[torch.Tensor]) -> list[list[float]]:
    return [(layer / _LEVELS).clamp(min=_SMALLEST).flatten().tolist() for layer in reached]
