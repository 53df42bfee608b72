"""Graphs whose key-value cache has 8 bits: read back as such, and near those of float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.child import run_child
from edgetune.files import list_files
from tests.optimize.test_gptq_graphs import calibration

pytestmark = pytest.mark.slow
CACHES = ("float32", "int8")


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_phi3: Path
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("caches")
    text = {**calibration(folder / "text.jsonl", 60), "cache_scales": True}
    jobs = [
        {
            "checkpoint": str(base),
            "scheme": "fp32",
            "kv_cache": kv_cache,
            "calibration": text if kv_cache == "int8" else None,
        }
        for base in (tiny_llama, tiny_phi3)
        for kv_cache in CACHES
    ]
    out = folder / "built"
    out.mkdir()
    facts, _ = run_child(
        "tests.optimize.builds:build_all", {"jobs": jobs}, out,
        log=folder / "log", progress=lambda _: None,
    )  # fmt: skip
    return out, facts


def logits_of(folder: Path, text: str) -> np.ndarray[Any, Any]:
    """Of the last position, after the first half of the text as a prompt and the rest one by one:
    what is cached is read back."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=128)
    generator = og.Generator(model, parameters)
    ids = og.Tokenizer(model).encode(text).tolist()
    half = len(ids) // 2
    generator.append_tokens(np.array([ids[:half]], dtype=np.int32))
    for token in ids[half:]:
        generator.append_tokens(np.array([[token]], dtype=np.int32))
    return np.asarray(generator.get_logits()).ravel().copy()


@pytest.mark.parametrize("first", [0, 2])
def test_it_is_read_back_and_near(built: tuple[Path, dict[str, Any]], first: int) -> None:
    out, facts = built
    found = [facts[str(number)]["read_back"]["kv_cache"] for number in (first, first + 1)]
    assert found == list(CACHES)
    assert facts[str(first + 1)]["calibration"]["tokens"] >= 1024
    assert not [name for name in list_files(out / str(first + 1)) if "scales" in name]
    text = "the number 64 is 8 by 8, the rest 8"
    plain, small = (logits_of(out / str(number), text) for number in (first, first + 1))
    difference = np.abs(plain - small).max() / np.abs(plain).max()
    assert 0 < difference < 0.05
