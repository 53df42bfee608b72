"""An embedding of its own that a rule quantizes: stored so, looked up so, and predicted so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.checkpoint.folder import EMBEDDING, read_checkpoint
from edgetune.optimize.forms.decoder import make_expectations
from edgetune.optimize.schemes import AUTO, SCHEMES, make_widths
from edgetune.optimize.size import predict_graph_bytes
from edgetune.optimize.widths import FLOAT, Width
from tests.optimize.test_optimize import run
from tests.tiny import edit_tensors

RULE, FLOAT_RULE = {"embed_tokens": "w8"}, {"embed_tokens": "fp32"}


def test_only_a_rule_quantizes_it() -> None:
    scheme = AUTO
    plain, ruled = make_widths(scheme), make_widths(scheme, None, RULE)
    assert plain.of_embedding() == FLOAT
    assert ruled.of_embedding() == Width(
        8, 32, "gptq", scale_bits=8
    )  # a row is rounded to nearest all the same
    assert make_expectations(scheme, plain, tied=False)["embedding"] == "float32"
    assert make_expectations(scheme, ruled, tied=False)["embedding"] == "int8"
    assert make_expectations(scheme, ruled, tied=True)["embedding"] == "int4, shared with the head"


@pytest.mark.line
def test_it_gives_what_its_rounded_rows_give(tiny_phi3: Path, tmp_path: Path) -> None:
    rounded = tmp_path / "rounded"
    shutil.copytree(tiny_phi3, rounded)
    edit_tensors(rounded / "model.safetensors", _round_embedding)
    jobs = [
        {"checkpoint": str(tiny_phi3), "scheme": "w8a16-rtn", "protect": RULE},
        {"checkpoint": str(rounded), "scheme": "w8a16-rtn", "protect": FLOAT_RULE},
    ]
    facts = run("build_all", {"jobs": jobs}, tmp_path / "out")
    assert [facts[n]["read_back"]["embedding"] for n in "01"] == ["int8", "float32"]
    ours, theirs = (_logits(tmp_path / "out" / n) for n in "01")
    assert np.abs(ours - theirs).max() < 1e-4
    checkpoint = read_checkpoint(tiny_phi3)
    shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
    widths = [make_widths(SCHEMES["w8a16-rtn"], None, rule) for rule in (RULE, FLOAT_RULE)]
    small, large = (predict_graph_bytes(checkpoint.config, shapes, False, w).total for w in widths)
    saved = facts["1"]["graph_bytes"] - facts["0"]["graph_bytes"]
    assert saved == pytest.approx(large - small, abs=2000)


def _round_embedding(tensors: dict[str, Any]) -> dict[str, Any]:
    from edgetune.sensitivity.rounded import rounded_weight

    weight = tensors[EMBEDDING].float()
    return {**tensors, EMBEDDING: rounded_weight("m", weight, Width(8, 32, "rtn", scale_bits=8))}


def _logits(folder: Path) -> Any:
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=16)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([[97, 98, 99, 104]], dtype=np.int32))
    return np.asarray(generator.get_logits())
