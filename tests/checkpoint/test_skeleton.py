"""A config.json that transformers cannot make a model of is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.errors import InputRefusedError

pytest.importorskip("torch")


@pytest.mark.parametrize(
    "change",
    [{"text_config": []}, {"decoder": [1]}, {"hidden_size": "wide"}, {"num_attention_heads": 0}],
    ids=str,
)
def test_a_value_of_the_wrong_kind(
    tmp_path: Path, tiny_llama: Path, change: dict[str, Any]
) -> None:
    from edgetune.checkpoint.skeleton import meta_model

    base = shutil.copytree(tiny_llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(InputRefusedError, match=r"config\.json"):
        meta_model(read_checkpoint(base))
