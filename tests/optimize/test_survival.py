"""What quantization leaves of a fine-tune, against plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetune.checkpoint.graph_weights import blocks_of, pieces_of, read_matrices, whole_weight
from edgetune.errors import StepFailedError
from edgetune.optimize.schemes import SCHEMES, make_widths
from edgetune.optimize.survival import survival
from tests.tiny import edit_tensors
from tests.tiny_package import VARIANT, tiny_package

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_package(tmp_path_factory)


def copy_with(source: Path, folder: Path, change: Any) -> Path:
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    edit_tensors(folder / WEIGHTS, change)
    return folder


def found(package: Path, checkpoint: Path, base: Path | None) -> dict[str, Any]:
    start = None if base is None else {"path": str(base), "trained_as": None}
    # The package is the builder's own, which leaves the embedding in float32.
    widths = make_widths(SCHEMES["w8a16-rtn"], None, {"embed_tokens": "fp32"})
    return survival(package / VARIANT, checkpoint, start, widths, lambda _: None)


def test_the_figures_are_those_of_whole_tensors(package: Path, tmp_path: Path) -> None:
    """A base that differs from the merged checkpoint by a little, in two modules."""
    home = package.parent
    changed = {"model.layers.0.self_attn.k_proj": 1e-3, "model.layers.1.mlp.down_proj": 2e-2}

    def shift(tensors: dict[str, Any]) -> dict[str, Any]:
        make = torch.Generator().manual_seed(0)
        for module, size in changed.items():
            weight = tensors[f"{module}.weight"]
            noise = torch.randn(weight.shape, generator=make) * size
            tensors[f"{module}.weight"] = weight + noise
        return tensors

    base = copy_with(home / "checkpoint", tmp_path / "base", shift)
    told = found(package, home / "checkpoint", base)
    assert (told["reason"], told["not_found"]) == (None, [])
    assert [row["name"] for row in told["modules"]] == list(changed)  # the slighter one is worse
    merged, before = (load_file(f / WEIGHTS) for f in (home / "checkpoint", base))
    shapes = {n.removesuffix(".weight"): tuple(t.shape) for n, t in merged.items()}
    matrices = read_matrices(package / VARIANT)
    for row in told["modules"]:
        name = row["name"]
        pieces = pieces_of(name, shapes, matrices)
        new, old = merged[f"{name}.weight"].float(), before[f"{name}.weight"].float()
        steps = torch.cat([step for _, _, step in blocks_of(pieces)])
        delta, noise = new - old, whole_weight(pieces) - new
        assert row["values"] == delta.numel()
        assert row["delta_relative"] == pytest.approx(float(delta.norm() / old.norm()), rel=1e-3)
        assert row["snr"] == pytest.approx(float(delta.norm() / noise.norm()), rel=1e-3)
        below = float((delta.abs() < steps / 2).float().mean())
        assert row["below_step"] == pytest.approx(below, rel=1e-3)
        assert row["step"] == pytest.approx(float(steps.median()), rel=1e-3)
    slight, strong = told["modules"]
    assert slight["snr"] < 1 < strong["snr"]
    assert slight["below_step"] > 0.9 > strong["below_step"]


def test_a_graph_of_other_weights_is_refused(package: Path, tmp_path: Path) -> None:
    home = package.parent

    def other(tensors: dict[str, Any]) -> dict[str, Any]:
        name = "model.layers.1.mlp.up_proj.weight"
        return {**tensors, name: tensors[name] * 1.1}

    checkpoint = copy_with(home / "checkpoint", tmp_path / "other", other)
    with pytest.raises(StepFailedError, match=r"up_proj: the graph's weights are not those"):
        found(package, checkpoint, home / "base")


def test_without_a_base_or_a_change_there_is_nothing(package: Path) -> None:
    checkpoint = package.parent / "checkpoint"
    told = found(package, checkpoint, None)
    assert told["modules"] == []
    assert told["reason"] == "no base to compare with: name it as base_before"
    assert found(package, checkpoint, checkpoint) == {
        "modules": [], "not_found": [], "reason": None,
    }  # fmt: skip


def test_rounding_keeps_all_of_a_slight_change_on_average() -> None:
    """Why the part of Q(W + Δ) − Q(W) along Δ is no measure: it is 1 whatever the step is, and
    what tells is the noise beside it."""
    make = torch.Generator().manual_seed(0)
    weight = torch.rand(400_000, generator=make) * 100
    for size in (0.3, 0.03):
        delta = torch.randn(weight.shape, generator=make) * size
        moved = (weight + delta).round() - weight.round()
        along = float((moved * delta).sum() / (delta * delta).sum())
        assert along == pytest.approx(1, abs=0.1)
        cosine = float((moved * delta).sum() / moved.norm() / delta.norm())
        assert cosine < 1.2 * size**0.5
