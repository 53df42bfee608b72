"""Every family's graph: in float32 equal to torch, in eight and four bits opened and answering."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checkpoint.graph_weights import blocks_of, pieces_of, read_matrices
from edgetune.checkpoint.tensors import load_tensor
from edgetune.child import run_child
from edgetune.estimates import estimate
from edgetune.optimize.schemes import find_scheme, make_widths
from edgetune.optimize.survival import linear_shapes
from tests.families import FAMILIES, build_family

pytestmark = pytest.mark.slow

SCHEMES = ("fp32", "w8a16-rtn", "w4a16-rtn")
_NUMBERS = ("difference", "largest", "kl_mean", "answer")
PUBLISHED = [name for name, tiny in FAMILIES.items() if tiny.published]
# What a graph is without a correction of the builder: other logits, or no graph at all.
UNCORRECTED = {
    ("llama-linear", "make_rotary_embedding_caches_from_scratch"): True,
    ("gemma3-scaled", "make_rotary_embedding_caches_from_scratch"): True,
    ("gemma2", "make_embedding"): True,
    ("olmo", "make_layernorm"): True,
    ("smollm3", "make_attention"): False,
}


Measured = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """{(family, scheme, or "published", or the correction left out): facts}, from one child."""
    folder = tmp_path_factory.mktemp("families")
    bases = {name: build_family(folder / name, name) for name in FAMILIES}
    old = {n: build_family(folder / f"old-{n}", n, published=True) for n in PUBLISHED}
    jobs: dict[tuple[str, str], dict[str, Any]] = {}
    for name, scheme in product(FAMILIES, SCHEMES):
        long = FAMILIES[name].long if scheme == "fp32" else 0
        jobs[name, scheme] = {"checkpoint": str(bases[name]), "scheme": scheme, "long": long}
    for name in PUBLISHED:
        jobs[name, "published"] = {**jobs[name, "fp32"], "checkpoint": str(old[name])}
    for name, method in UNCORRECTED:
        jobs[name, method] = {**jobs[name, "fp32"], "without": method}
    out = folder / "built"
    out.mkdir()
    facts, _ = run_child(
        "tests.optimize.builds:build_families", {"jobs": list(jobs.values())}, out,
        log=folder / "log", progress=lambda text: None,
    )  # fmt: skip
    return {
        key: {
            **facts[str(number)],
            "checkpoint": job["checkpoint"],
            "folder": str(out / str(number)),
        }
        for number, (key, job) in enumerate(jobs.items())
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_float_graph_equals_torch(measured: Measured, name: str) -> None:
    found = measured[name, "fp32"]
    assert found["largest"] > 2
    assert found["difference"] <= 1e-5 * max(1.0, found["largest"])
    assert found["answer"] == found["scored_answer"] == found["expected"] != []


@pytest.mark.parametrize("name", FAMILIES)
def test_quantized_graphs_answer(measured: Measured, name: str) -> None:
    eight, four = measured[name, "w8a16-rtn"], measured[name, "w4a16-rtn"]
    assert 1e-6 < eight["kl_mean"] < 0.01
    assert eight["kl_mean"] < four["kl_mean"] < 1
    assert eight["answer"]
    assert four["answer"]


@pytest.mark.parametrize("scheme", SCHEMES[1:])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_is_found_in_the_graph(measured: Measured, name: str, scheme: str) -> None:
    """By its name, with its values: what is said of a module is said of that module."""
    found = measured[name, scheme]
    checkpoint = read_checkpoint(Path(found["checkpoint"]))
    shapes, matrices = linear_shapes(checkpoint), read_matrices(Path(found["folder"]))
    if "lm_head" in shapes:
        del shapes["model.embed_tokens"]
    for module in shapes:
        pieces = pieces_of(module, shapes, matrices)
        assert pieces, module
        exact = load_tensor(checkpoint.path, checkpoint.tensors[f"{module}.weight"], torch.float32)
        for row, weights, steps in blocks_of(pieces):
            off = (weights - exact[row : row + len(weights)]).abs()
            assert bool((off <= 1.01 * steps + 1e-30).all()), module


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_as_published_gives_the_same(measured: Measured, name: str) -> None:
    now, before = measured[name, "fp32"], measured[name, "published"]
    assert {k: before[k] for k in _NUMBERS} == {k: now[k] for k in _NUMBERS}


@pytest.mark.parametrize(("name", "without"), UNCORRECTED)
def test_no_correction_is_idle(measured: Measured, name: str, without: str) -> None:
    found = measured[name, without]
    if UNCORRECTED[name, without]:
        assert found["difference"] > 2e-5 * max(1.0, found["largest"])
    else:
        assert "Olive gave no model" in found["error"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_predicts_the_size(measured: Measured, name: str, scheme: str) -> None:
    base = read_checkpoint(Path(measured[name, scheme]["checkpoint"]))
    predicted = estimate(base, make_widths(find_scheme(scheme)), adapted=False, layered=False)
    # Of a model this small the nodes are a tenth; of a real one nothing is left of their part.
    assert predicted.graph_bytes == pytest.approx(measured[name, scheme]["graph_bytes"], rel=0.1)
