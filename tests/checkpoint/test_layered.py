"""A model run layer by layer gives the numbers of one in memory, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import build_base, make_adapter

pytestmark = pytest.mark.line

torch = pytest.importorskip("torch")
NF4 = {"type": "nf4", "double_quant": True, "compute_dtype": "float32"}


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
@pytest.mark.parametrize("trained_as", [None, NF4], ids=["plain", "nf4"])
def test_equal_to_the_last_bit(tmp_path: Path, family: str, trained_as: Any) -> None:
    from edgetune.checkpoint.trained import load_base_alone, load_trained_model

    base = build_base(tmp_path / "base", family, tie_word_embeddings=family == "qwen2")
    targets = "all-linear"
    adapter = make_adapter(base, "dora", folder=tmp_path / "adapter", target_modules=targets)
    adapters = [{"path": str(adapter), "weight": 0.7}]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    whole = logits(load_trained_model(base, trained_as, adapters))
    layered = logits(load_trained_model(base, trained_as, adapters, scratch=scratch))
    assert torch.equal(whole, layered)
    alone = logits(load_base_alone(base, trained_as, adapters, scratch))
    assert torch.equal(alone, logits(load_base_alone(base, trained_as, adapters)))
    assert not torch.equal(alone, whole)
    assert not list(scratch.iterdir())


def test_no_room_on_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from edgetune.checkpoint.layered import load_layered
    from edgetune.errors import MissingError

    base = build_base(tmp_path / "base")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(MissingError, match="the model in float32 needs about"):
        load_layered(base, None, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
