"""Merge step, then reference step: the parity that a build enforces, for more than plain LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from edgetune.errors import StepFailedError
from edgetune.merge.merge import merge_step
from edgetune.reference.reference import reference_step
from tests.adapter_kinds import KINDS, make_kind
from tests.merge.merged import weighted
from tests.merge.test_combine import settings
from tests.merge.test_vocabulary import make_resized
from tests.reference.conftest import CHATS, write_chats
from tests.tiny import edit_tensors, make_adapter

pytestmark = pytest.mark.line

# name: (base fixture, makes the adapters in a folder, combine)
Make = Callable[[Path, Path], list[Path]]
CASES: dict[str, tuple[str, Make, dict[str, Any] | None]] = {
    "LoHa": ("tiny_phi3", lambda b, f: [make_kind(b, KINDS["LoHa"], f / "a")], None),
    "trained tokens": (
        "tiny_qwen2", lambda b, f: [make_kind(b, KINDS["trainable tokens"], f / "a")], None,
    ),
    "resized": (
        "tiny_llama_tied",
        lambda b, f: [make_resized(b, f / "a", modules_to_save=["embed_tokens", "lm_head"])],
        None,
    ),
    "replicated": (
        "tiny_llama",
        lambda b, f: [make_adapter(b, folder=f / "a", layer_replication=[[0, 2], [0, 2]])],
        None,
    ),
    "combined": (
        "tiny_llama",
        lambda b, f: [make_adapter(b, folder=f / f"{n}", seed=n) for n in (1, 2)],
        settings("dare_ties"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", ["LoHa", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "LoHa")]
)
def test_a_build_s_parity(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    fixture, make, combine = CASES[case]
    base = request.getfixturevalue(fixture)
    adapters = make(base, tmp_path / "adapters")
    arguments = {
        "base": {"path": str(base), "trained_as": None},
        "adapters": weighted(adapters),
        "combine": combine,
        "onto": "dequantized",
        "merge_dtype": "float32",
    }
    merged, out = tmp_path / "merged", tmp_path / "reference"
    merged.mkdir()
    merge_step(arguments, merged, lambda _: None)
    job = {
        **arguments,
        "base_before": None,
        "checkpoints": {"dequantized": str(merged)},
        "task": "text-generation",
        "evaluation": str(write_chats(tmp_path / "chats.jsonl", CHATS)),
        "self_test_data": "evaluation",
        "seed": 0,
        "threads": 1,
        "layered": False,
    }
    out.mkdir()
    facts = reference_step(job, out, lambda _: None)
    assert facts["parity_enforced"]
    assert facts["parity_max_abs"] <= 1e-5 * max(1.0, facts["largest_logit"])
    assert facts["kl_base"] > 0.01  # the adapter changes the answers
    changed = "model.norm.weight"
    weights = merged / "model.safetensors"
    before = load_file(weights)[changed].float()
    edit_tensors(weights, lambda t: {**t, changed: t[changed] * 1.5})
    assert not load_file(weights)[changed].float().equal(before)
    with pytest.raises(StepFailedError, match="is not the same model as the trained model"):
        reference_step(job, out, lambda _: None)
