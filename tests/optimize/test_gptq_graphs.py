"""Graphs built with GPTQ: what the pass rounded is what the graph holds, module by module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.child import run_child
from edgetune.files import list_files

pytestmark = pytest.mark.slow
SCHEMES = ("w4a16-gptq-g16", "w4a16-rtn-g16")


def calibration(path: Path, rows: int) -> dict[str, Any]:
    lines = [
        json.dumps({"prompt": f"the number {n * n} is", "completion": f" {n} by {n}, the rest {n}"})
        for n in range(rows)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    shared = {"task": "text-generation", "seed": 0, "threads": 1, "layered": False}
    return {**shared, "data": str(path)}


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, tiny_phi3: Path, tiny_llama_tied: Path
) -> tuple[Path, dict[str, Any]]:
    """Each base with each scheme, and one with too little text."""
    folder = tmp_path_factory.mktemp("gptq")
    enough, few = calibration(folder / "enough.jsonl", 60), calibration(folder / "few.jsonl", 3)
    jobs = [
        {
            "checkpoint": str(base),
            "scheme": scheme,
            "base": {"path": str(base), "trained_as": None},
            "calibration": enough if "gptq" in scheme else None,
        }
        for base in (tiny_phi3, tiny_llama_tied)
        for scheme in SCHEMES
    ]
    jobs.append({**jobs[0], "calibration": few})
    out = folder / "built"
    out.mkdir()
    facts, _ = run_child(
        "tests.optimize.builds:build_all", {"jobs": jobs}, out,
        log=folder / "log", progress=lambda _: None,
    )  # fmt: skip
    return out, facts


@pytest.mark.parametrize(("number", "family"), [(0, "phi3"), (2, "tied")])
def test_the_graph_holds_what_the_pass_rounded(
    built: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    tiny_phi3: Path,
    tiny_llama_tied: Path,
    number: int,
    family: str,
) -> None:
    """In the builder's joined and divided products too, and within the file that ships."""
    import torch

    from edgetune.checkpoint.folder import read_checkpoint
    from edgetune.checkpoint.graph_weights import pieces_of, read_matrices, whole_weight
    from edgetune.optimize.gptq.quantize import quantize_layers
    from edgetune.optimize.rounding import all_rounders
    from edgetune.optimize.rounding.block import Block
    from edgetune.optimize.rounding.pack import unpack
    from edgetune.optimize.schemes import make_widths, parse_scheme
    from edgetune.optimize.survival import linear_shapes
    from edgetune.reference.calibration import calibration_step

    out, facts = built
    assert facts[str(number)]["read_back"]["weight_bits"] == [4, 8]
    assert facts[str(number)]["calibration"]["source"] == "calibration data"
    assert not [name for name in list_files(out / str(number)) if "calibration" in name]
    base = {"phi3": tiny_phi3, "tied": tiny_llama_tied}[family]
    widths = make_widths(*parse_scheme(SCHEMES[0]))
    given = {**calibration(tmp_path / "enough.jsonl", 60), "checkpoint": str(base)}
    calibration_step(given, tmp_path, lambda _: None)
    texts = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    quantize_layers(base, texts, widths, tmp_path / "codes", lambda _: None)
    rounders = all_rounders(tmp_path / "codes")
    shapes, matrices = linear_shapes(read_checkpoint(base)), read_matrices(out / str(number))
    layers = [module for module in shapes if ".layers." in module]
    assert len(layers) == 2 * (4 if family == "phi3" else 7)
    for module in layers:
        width = widths.of(module)
        rounded = rounders["gptq"](Block(module, 0, torch.empty(shapes[module])), width)
        found = whole_weight(pieces_of(module, shapes, matrices))
        assert torch.equal(found, unpack(rounded, width, shapes[module][1])), module


def test_survival_is_told_of_an_unchanged_model(built: tuple[Path, dict[str, Any]]) -> None:
    """The base is the checkpoint itself: no module has changed, and all of them were found."""
    _, facts = built
    for number in range(4):
        assert facts[str(number)]["survival"] == {"modules": [], "not_found": [], "reason": None}


def test_too_little_text_is_refused_and_nothing_is_left(
    built: tuple[Path, dict[str, Any]],
) -> None:
    found = built[1]["4"]
    assert found["exit_code"] == 2
    assert "tokens are too few to calibrate on, 1024 are the least" in found["error"]
    assert not [name for name in found["left"] if name.startswith("model")]
