"""DoRA's norms computed once: the same numbers, less work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_adapter

pytestmark = pytest.mark.line


def answers(model: Any) -> list[Any]:
    import torch

    ids = torch.arange(24).reshape(1, -1)
    with torch.inference_mode():
        return [model(input_ids=ids[:, :length]).logits for length in (24, 7, 1)]


@pytest.mark.parametrize("room", [1 << 40, 1])
def test_the_same_logits_and_norms_once(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    import torch
    from peft.tuners.lora import dora

    from edgetune.checkpoint.trained import load_trained_model
    from edgetune.reference import dora as kept

    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", use_dora=True)
    model = load_trained_model(
        tiny_llama, None, [{"path": str(adapter), "weight": 1.0}], onto="original"
    )
    plain = answers(model)
    monkeypatch.setattr(kept, "available_memory_bytes", lambda: room)
    computed: list[str] = []
    norm = torch.linalg.norm
    monkeypatch.setattr(
        dora.torch.linalg, "norm", lambda *a, **k: computed.append("") or norm(*a, **k)
    )
    with kept.kept_norms(model):
        found = answers(model)
    layers = [m for m in model.modules() if len(getattr(m, "lora_magnitude_vector", ()))]
    assert layers
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))
    assert len(computed) == len(layers) * (1 if room > 1 else 3)
    assert not dora.ENABLE_DORA_CACHING
