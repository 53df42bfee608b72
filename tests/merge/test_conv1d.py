"""fan_in_fan_out: GPT-2's Conv1D keeps its weight transposed. No family here has one, so the base
is refused by name, and the arithmetic is proved on a layer alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edgetune.checkpoint.tensors as tensors_module
from edgetune.checkpoint.adapter import Adapter
from edgetune.checkpoint.header import TensorEntry
from edgetune.errors import InputRefusedError
from edgetune.merge.layer import merged_weight
from edgetune.merge.ledger import Layer, Ledger, Source
from tests.merge.merged import merge
from tests.tiny import build_base, make_adapter


class Given(Ledger):
    """Hands out tensors instead of reading them."""

    def load(self, source: Source, *, note: bool = True) -> torch.Tensor:
        return VALUES[source.entry.name]


VALUES: dict[str, torch.Tensor] = {}


@pytest.mark.parametrize("dora", [False, True])
def test_a_transposed_weight(dora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig
    from peft.tuners.lora import Linear
    from transformers.pytorch_utils import Conv1D

    monkeypatch.setattr(tensors_module, "BLOCK_BYTES", 4 * 4 * 12)  # four rows a block
    torch.manual_seed(0)
    base = Conv1D(12, 16)  # 16 in, 12 out: its weight is [16, 12]
    config = LoraConfig(r=3, lora_alpha=6, fan_in_fan_out=True, use_dora=dora)
    layer = Linear(base, "a", config, r=3, lora_alpha=6, is_target_conv_1d_layer=True)
    parts = {
        "lora_A.weight": layer.lora_A["a"].weight,
        "lora_B.weight": layer.lora_B["a"].weight,
    }
    if dora:
        parts["lora_magnitude_vector"] = layer.lora_magnitude_vector["a"].weight
    with torch.no_grad():
        for tensor in parts.values():
            tensor += torch.randn_like(tensor) * 0.3
    x = torch.randn(5, 16)
    unmerged = layer.eval()(x).detach()
    weight, bias = base.weight.detach().clone(), base.bias.detach().clone()
    VALUES.update({name: tensor.detach().clone() for name, tensor in parts.items()})
    sources = {("a", name): source(name) for name in parts}
    given = Layer("attn", layer, sources, Given())
    blocks = list(merged_weight(given, lambda start, stop: weight[start:stop].clone(), (16, 12)))
    merged = x @ torch.cat(blocks) + bias
    assert (merged - unmerged).abs().max() < 1e-5
    assert (unmerged - (x @ weight + bias)).abs().max() > 0.3


def test_gpt2_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", "gpt2", n_embd=64, n_layer=2, n_head=4)
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", fan_in_fan_out=True)
    with pytest.raises(InputRefusedError, match="'gpt2'"):
        merge(tmp_path / "out", base, [adapter])


def source(name: str) -> Source:
    adapter = Adapter(Path(), {}, "LORA", False, 3, 6, None, {}, ())
    return Source("a", adapter, TensorEntry(name, "F32", (1,), "x", 0, 4))
