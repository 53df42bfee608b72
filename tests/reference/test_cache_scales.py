"""Scales of an 8-bit key-value cache: what a channel reaches, at any position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.checkpoint.trained import load_plain
from edgetune.reference.cache_scales import FILE, write_cache_scales

pytestmark = pytest.mark.line

TEXT = [7, 11, 200, 35, 90, 14, 3, 77]


def scales_of(base: Path, out: Path, texts: list[list[int]]) -> tuple[Any, dict[str, Any]]:
    model = load_plain(base, torch.float32, None)
    out.mkdir()
    write_cache_scales(model, texts, out, lambda _: None)
    value: dict[str, Any] = json.loads((out / FILE).read_text(encoding="utf-8"))
    return model, value


def cached(model: Any, ids: torch.Tensor, first: int) -> Any:
    """The cache of a text that stands at the positions from `first` on."""
    positions = torch.arange(first, first + ids.shape[1])[None]
    with torch.inference_mode():
        return model(ids, position_ids=positions, use_cache=True).past_key_values


@pytest.mark.parametrize("base", ["tiny_llama", "tiny_qwen2", "tiny_phi3"])
def test_no_position_reaches_more(
    base: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, found = scales_of(request.getfixturevalue(base), tmp_path / "out", [TEXT])
    assert found["layer_ids"] == [0, 1]
    ids = torch.tensor([TEXT])
    for number in found["layer_ids"]:
        keys, values = (
            torch.tensor(found["scales"][k][number]) * 128 for k in ("k_scales", "v_scales")
        )
        for first in (0, 50, 173):
            layer = cached(model, ids, first).layers[number]
            reached = layer.keys[0].abs().amax(1).flatten()
            assert (reached <= keys * (1 + 1e-4)).all()
            assert torch.allclose(layer.values[0].abs().amax(1).flatten(), values, rtol=1e-4)
        # And none is idle: each pair of channels comes near it somewhere.
        assert (reached.view(2, -1).amax(1) > 0.3 * keys.view(2, -1).amax(1)).all()


def test_of_several_texts_the_largest_counts(tiny_llama: Path, tmp_path: Path) -> None:
    other = [250, 1, 99, 120]
    both = scales_of(tiny_llama, tmp_path / "both", [TEXT, other])[1]["scales"]
    own = [scales_of(tiny_llama, tmp_path / name, [text])[1]["scales"]
           for name, text in (("one", TEXT), ("two", other))]  # fmt: skip
    for key in ("k_scales", "v_scales"):
        largest = torch.maximum(torch.tensor(own[0][key]), torch.tensor(own[1][key]))
        assert torch.equal(torch.tensor(both[key]), largest)
