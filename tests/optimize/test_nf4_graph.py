"""A QLoRA base whose NF4 weights ship as they are, where the adapter left them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.checkpoint.graph_weights import pieces_of, read_matrices, whole_weight
from edgetune.child import run_child
from edgetune.files import dump_json, read_json
from edgetune.optimize.survival import linear_shapes
from tests.tiny import build_base, edit_tensors

pytestmark = pytest.mark.slow

TRAINED_AS = {"type": "nf4", "double_quant": True, "compute_dtype": "float32"}
CHANGED = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def merge_like(base: Path, folder: Path) -> Path:
    """What the merge leaves: dequantized linears in float32, two of them changed."""
    from edgetune.checkpoint.as_seen import weights_as_seen

    find = weights_as_seen(base, TRAINED_AS)

    def merged(tensors: dict[str, Any]) -> dict[str, Any]:
        own = dict(tensors)
        for name, tensor in tensors.items():
            module = name.removesuffix(".weight")
            if tensor.ndim == 2 and module not in ("model.embed_tokens", "lm_head"):
                rows, read = find(module) or (0, None)
                assert read is not None
                own[name] = read(0, rows).clone() * (1.01 if module in CHANGED else 1)
        return own

    edit_tensors(folder / "model.safetensors", merged)
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(dump_json({**config, "dtype": "float32"}))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """(checkpoint, out, facts): with the changed modules at 8 bits, and without."""
    home = tmp_path_factory.mktemp("nf4")
    base = build_base(home / "base")
    checkpoint = merge_like(base, build_base(home / "merged"))
    job = {
        "checkpoint": str(checkpoint),
        "scheme": "nf4a16",
        "base": {"path": str(base), "trained_as": TRAINED_AS},
    }
    (home / "out").mkdir()
    facts, _ = run_child(
        "tests.optimize.builds:build_all", {"jobs": [{**job, "changed": CHANGED}, job]},
        home / "out", log=home / "log", progress=lambda text: None,
    )  # fmt: skip
    assert "error" not in facts["0"], facts["0"]["error"]
    return checkpoint, home / "out", facts


def test_what_no_adapter_changed_is_bit_for_bit_as_trained(
    built: tuple[Path, Path, dict[str, Any]],
) -> None:
    from edgetune.checkpoint.folder import read_checkpoint
    from edgetune.checkpoint.tensors import load_tensor

    checkpoint, out, facts = built
    found = read_checkpoint(checkpoint)
    shapes, matrices = linear_shapes(found), read_matrices(out / "0")
    kept = 0
    for module in shapes:
        read = whole_weight(pieces_of(module, shapes, matrices))
        exact = load_tensor(found.path, found.tensors[f"{module}.weight"], torch.float32)
        eight = module in (*CHANGED, "model.embed_tokens", "lm_head")
        assert torch.equal(read, exact) != eight, module
        kept += not eight
    assert kept == 12
    told = facts["0"]["read_back"]
    # Of the layer without a change the three projections of attention are one product.
    assert (told["nf4_matmuls"], told["quantized_matmuls"]) == (10, 13)
    assert (told["weight_bits"], told["embedding"]) == ([4, 8], "int8")
    survived = facts["0"]["survival"]
    assert survived["not_found"] == []
    assert {row["name"] for row in survived["modules"]} == set(CHANGED)


def test_what_an_adapter_changed_is_no_nf4(built: tuple[Path, Path, dict[str, Any]]) -> None:
    refused = built[2]["1"]
    assert refused["exit_code"] == 6
    assert "its weights are not NF4 any more" in refused["error"]


def test_it_opens_and_answers_as_torch_does(
    built: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    checkpoint, out, _ = built
    (tmp_path / "p").mkdir()
    facts, _ = run_child(
        "tests.optimize.builds:measure_parity", {"pairs": [[str(checkpoint), str(out / "0")]]},
        tmp_path / "p", log=tmp_path / "log", progress=lambda text: None,
    )  # fmt: skip
    difference, largest = facts["0"]
    assert difference < 0.03 * max(1.0, largest)
