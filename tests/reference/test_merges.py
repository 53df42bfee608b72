"""The certificate: both merges of a QLoRA from the trained model, and the one that is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.errors import StepFailedError
from edgetune.merge.merge import merge_step
from edgetune.reference.measure import Distance
from edgetune.reference.merges import Candidate, certificate, choose, judge_parity
from edgetune.reference.reference import reference_step
from edgetune.statistics import Interval
from tests.reference.conftest import Arguments

Make = Callable[..., Arguments]
NF4 = {"type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}


def candidate(onto: str, kl: float, max_abs: float = 1e-6) -> Candidate:
    distance = Distance(max_abs, 10.0, np.full(3, kl), np.ones(3, dtype=bool))
    return Candidate(onto, "trained model", distance, Interval(kl, kl, kl), Interval(1, 1, 1))


def test_the_nearer_one_is_taken_and_of_equals_the_first() -> None:
    one, other = candidate("dequantized", 0.2), candidate("original", 0.1)
    assert choose([one, other]).onto == "original"
    assert choose([replace(one, kl_mean=other.kl_mean), other]).onto == "dequantized"


def test_the_certificate_shows_both() -> None:
    one, other = candidate("dequantized", 1e-9), candidate("original", 0.1)
    told = certificate([one, other], one, four_bit=True)
    assert (told["chosen"], told["positions"]) == ("dequantized", 3)
    assert [c["onto"] for c in told["candidates"]] == ["dequantized", "original"]
    assert told["candidates"][1]["kl_mean"] == {"value": 0.1, "low": 0.1, "high": 0.1}
    plain = certificate([one], one, four_bit=False)
    assert plain["chosen"] is plain["candidates"][0]["onto"] is None


def test_parity_is_enforced_in_float32_only() -> None:
    far = candidate("dequantized", 0.0, max_abs=0.01)
    assert judge_parity(far, "base")["parity_enforced"] is False
    with pytest.raises(StepFailedError, match=r"differ by up to 0\.01, allowed are 0\.001"):
        judge_parity(far, "float32")


@pytest.fixture
def both(
    arguments: Make, tiny_phi3: Path, lora: Path, tmp_path: Path
) -> Callable[[str], Arguments]:
    """The step's arguments for two merges of a QLoRA, in the type named."""

    def make(dtype: str) -> Arguments:
        base = {"path": str(tiny_phi3), "trained_as": NF4}
        folders = {}
        for onto in ("dequantized", "original"):
            folder = tmp_path / f"{onto}-{dtype}"
            folder.mkdir()
            job = {"base": base, "adapters": [{"path": str(lora), "weight": 1.0}], "onto": onto,
                   "merge_dtype": dtype}  # fmt: skip
            merge_step(job, folder, lambda _: None)
            folders[onto] = str(folder)
        return {**arguments(base=base, merge_dtype=dtype), "checkpoints": folders}

    return make


@pytest.mark.line
@pytest.mark.parametrize("dtype", ["float32", "base"])
def test_of_two_merges_the_trained_model_s_own_is_nearer(
    both: Callable[[str], Arguments], tmp_path: Path, dtype: str
) -> None:
    job, out = both(dtype), tmp_path / "out"
    out.mkdir()
    facts: dict[str, Any] = reference_step(job, out, lambda _: None)
    assert facts["chosen"] == facts["certificate"]["chosen"] == "dequantized"
    assert facts["parity_against"] == "trained model"
    own, other = facts["certificate"]["candidates"]
    assert own["parity_max_abs"] == facts["parity_max_abs"]
    assert other["parity_against"] == "adapters over the original base"
    assert own["kl_mean"]["value"] < 1e-3 * other["kl_mean"]["value"]
    if dtype == "float32":
        # exact in its arithmetic, and still another model
        assert other["parity_max_abs"] < 1e-5
        assert own["kl_mean"]["value"] < 1e-9
    else:
        assert own["kl_mean"]["value"] > 1e-9
    assert other["kl_mean"]["low"] <= other["kl_mean"]["value"] <= other["kl_mean"]["high"]
    assert own["top1_agreement"]["value"] == 1.0
    assert {path.name for path in out.iterdir()} == {"logprobs.npy", "self_test"}
