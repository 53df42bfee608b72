"""GPTQ of whole tiny models: every module, layer after layer, and what the builder is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import StepFailedError
from edgetune.files import digests_of_folder
from tests.tiny import build_base

pytestmark = pytest.mark.line

torch = pytest.importorskip("torch")
TEXTS = [[5 + (7 * n * k) % 250 for k in range(1, 40)] for n in range(1, 9)]


def widths_of(protect: dict[str, str] | None = None) -> Any:
    from edgetune.optimize.schemes import SCHEMES, make_widths

    return make_widths(SCHEMES["w4a16-gptq"], 16, protect)


def quantized(checkpoint: Path, folder: Path, protect: dict[str, str] | None = None) -> Path:
    from edgetune.optimize.gptq.quantize import quantize_layers

    quantize_layers(checkpoint, TEXTS, widths_of(protect), folder, lambda _: None)
    return folder


def load(checkpoint: Path) -> Any:
    from edgetune.checkpoint.trained import load_plain

    return load_plain(checkpoint, torch.float32)


def with_weights(checkpoint: Path, algorithm: str, codes: Path | None) -> Any:
    """The checkpoint in torch with its layers' weights rounded."""
    from dataclasses import replace

    from edgetune.optimize.rounding import all_rounders
    from edgetune.optimize.rounding.block import Block
    from edgetune.optimize.rounding.pack import unpack

    width = replace(widths_of().default, algorithm=algorithm)
    model = load(checkpoint)
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            block = Block(f"model.{name}", 0, module.weight.data)
            rounded = all_rounders(codes)[algorithm](block, width)
            module.weight.data = unpack(rounded, width, module.in_features)
    return model


def distance(one: Any, other: Any) -> float:
    """Mean squared difference of what two models' layers give for the texts."""
    with torch.no_grad():
        errors = [
            (
                one.model(torch.tensor([text])).last_hidden_state
                - other.model(torch.tensor([text])).last_hidden_state
            ).square()
            for text in TEXTS
        ]
    return float(torch.cat(errors).mean())


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_the_model_is_nearer_than_rounded_to_nearest(
    tmp_path: Path, tiny_llama: Path, tiny_phi3: Path, family: str
) -> None:
    base = {"llama": tiny_llama, "phi3": tiny_phi3}[family]
    codes = quantized(base, tmp_path / "codes")
    linears = 2 * (7 if family == "llama" else 4)
    assert len(list(codes.iterdir())) == linears
    exact = load(base)
    found = distance(with_weights(base, "gptq", codes), exact)
    assert 0 < found < 0.7 * distance(with_weights(base, "rtn", None), exact)


def test_the_same_bytes_on_any_number_of_threads(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sums are one thread's, however many run side by side: SmolLM2's are others with two."""
    from edgetune.optimize.gptq import quantize

    seen = set()

    def watched(function: Any) -> Any:
        def call(*given: Any) -> Any:
            seen.add(torch.get_num_threads())
            return function(*given)

        return call

    for name in ("start_texts", "_hessian", "error_factors", "solve", "run_layer"):
        monkeypatch.setattr(quantize, name, watched(getattr(quantize, name)))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            monkeypatch.setattr("edgetune.optimize.threads.usable_cores", lambda n=threads: n)
            folder = quantized(tiny_llama, tmp_path / f"codes-{threads}")
            found.append(digests_of_folder(folder))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert seen == {1}
    assert found[0] == found[1]


def test_only_what_the_widths_say(tmp_path: Path, tiny_llama: Path) -> None:
    found = quantized(
        tiny_llama, tmp_path / "codes", {"v_proj": "fp32", "layers.1.mlp.down_proj": "w8"}
    )
    names = {path.stem for path in found.iterdir()}
    assert len(names) == 12
    assert not [name for name in names if "v_proj" in name or "lm_head" in name]
    from safetensors import safe_open

    with safe_open(found / "model.layers.1.mlp.down_proj.safetensors", framework="np") as tensors:
        assert tensors.metadata() == {"width": "w8-g16"}


def test_layers_are_run_as_the_model_runs_them(
    tiny_phi3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes out behind the last layer, in blocks from mapped bfloat16, is the model's own."""
    from edgetune.checkpoint.folder import read_checkpoint
    from edgetune.checkpoint.mapped import mapped_model
    from edgetune.optimize.gptq.layers import in_memory, run_layer, stages_of, start_texts

    exact = load(tiny_phi3)
    model, _ = mapped_model(read_checkpoint(tiny_phi3))
    embedding = exact.model.embed_tokens.weight.data
    monkeypatch.setattr("edgetune.optimize.gptq.layers._BATCH_TOKENS", 160)
    texts = start_texts(model, [*TEXTS[:7], TEXTS[7][:20]], lambda ids: embedding[ids])
    for number, layer in enumerate(model.model.layers):
        before = layer.self_attn.qkv_proj.weight.data
        with in_memory(layer):
            assert layer.self_attn.qkv_proj.weight.dtype == torch.float32
            assert stages_of(layer, texts, number) == [
                ["self_attn.qkv_proj"],
                ["self_attn.o_proj"],
                ["mlp.gate_up_proj"],
                ["mlp.down_proj"],
            ]
            run_layer(layer, texts, number)
        assert layer.self_attn.qkv_proj.weight.data is before or torch.equal(
            layer.self_attn.qkv_proj.weight.data, before
        )
        assert layer.self_attn.qkv_proj.weight.dtype == torch.bfloat16
    by_length = [[TEXTS[7][:20]], TEXTS[:4], TEXTS[4:7]]
    assert [list(hidden.shape[:2]) for hidden in texts.hidden] == [[1, 20], [4, 39], [3, 39]]
    for batch, hidden in zip(by_length, texts.hidden, strict=True):
        with torch.no_grad():
            wanted = exact.model(torch.tensor(batch))
        assert torch.allclose(exact.model.norm(hidden), wanted.last_hidden_state, atol=1e-5)


def test_projections_that_are_given_the_same_share_a_stage(tiny_llama: Path) -> None:
    from edgetune.checkpoint.folder import read_checkpoint
    from edgetune.checkpoint.mapped import mapped_model
    from edgetune.optimize.gptq.layers import in_memory, stages_of, start_texts

    model, _ = mapped_model(read_checkpoint(tiny_llama))
    texts = start_texts(model, TEXTS, lambda ids: torch.randn(len(ids), 64))
    with in_memory(model.model.layers[0]):
        stages = stages_of(model.model.layers[0], texts, 0)
    assert [[name.rpartition(".")[2] for name in stage] for stage in stages] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_a_module_that_no_text_reaches_is_refused(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.optimize.gptq import quantize

    stages = quantize.stages_of
    monkeypatch.setattr(quantize, "stages_of", lambda *given: stages(*given)[:-1])
    with pytest.raises(StepFailedError, match=r"mlp\.down_proj: the calibration text does not"):
        quantized(tiny_llama, tmp_path / "codes")


def test_the_builder_is_given_a_blocks_rows(tmp_path: Path, tiny_phi3: Path) -> None:
    import numpy as np

    from edgetune.optimize.rounding import all_rounders
    from edgetune.optimize.rounding.block import Block

    codes, width = quantized(tiny_phi3, tmp_path / "codes"), widths_of().default
    read, module = all_rounders(codes)["gptq"], "model.layers.0.mlp.gate_up_proj"
    whole = read(Block(module, 0, torch.empty(256, 64)), width)
    part = read(Block(module, 128, torch.empty(50, 64)), width)
    assert np.array_equal(part.packed, whole.packed[128:178])
    assert np.array_equal(part.scales, whole.scales[128:178])
    assert part.zero_points is None
    for block, words in (
        (Block("model.layers.9.mlp.down_proj", 0, torch.empty(4, 64)), "wrote no codes for it"),
        (Block(module, 250, torch.empty(50, 64)), "wrote too few rows of it"),
    ):
        with pytest.raises(StepFailedError, match=words):
            read(block, width)
    with pytest.raises(StepFailedError, match="rounded it to another width"):
        read(Block(module, 0, torch.empty(256, 64)), widths_of({"mlp": "w8"}).rules[0][1])


def test_a_head_is_rounded_to_nearest(tmp_path: Path) -> None:
    import numpy as np

    from edgetune.optimize.rounding import ROUNDERS, all_rounders
    from edgetune.optimize.rounding.block import Block

    block, width = Block("lm_head", 0, torch.randn(40, 64)), widths_of().of("lm_head")
    found = all_rounders(tmp_path)["gptq"](block, width)
    assert np.array_equal(found.packed, ROUNDERS["rtn"](block, width).packed)
    assert width.bits == 8


@pytest.mark.slow
def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    """Eight layers more are 100 MB of weights; they are never all in memory."""
    from edgetune.child import run_child

    peaks = []
    for layers in (4, 12):
        base = build_base(
            tmp_path / f"base-{layers}", hidden_size=512, intermediate_size=1536,
            num_hidden_layers=layers, num_attention_heads=8,
        )  # fmt: skip
        given = {"checkpoint": str(base), "codes": str(tmp_path / f"codes-{layers}")}
        _, peak = run_child(
            "tests.optimize.test_gptq_layers:quantize_in_child", given, tmp_path,
            log=tmp_path / "log", progress=lambda _: None,
            # Heaps of their own for threads keep up to 70 MB of what was freed, at any depth.
            inherited={**os.environ, "MALLOC_ARENA_MAX": "1"},
        )  # fmt: skip
        assert peak is not None
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 25


def quantize_in_child(arguments: dict[str, Any], out: Path, progress: Any) -> dict[str, Any]:
    """`quantized`, for its memory to be measured."""
    quantized(Path(arguments["checkpoint"]), Path(arguments["codes"]))
    return {}
