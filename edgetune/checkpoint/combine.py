"""Several LoRA adapters made one by PEFT's `add_weighted_adapter`, and when that means something.

The default of several adapters is a true weighted sum of their deltas and needs nothing of this.
PEFT's combinations are other models: `ties` keeps signs that agree, `dare_*` drops values at
random, `svd` cuts the rank. The trained model of such a recipe is PEFT's own combined adapter,
unmerged (`trained.py`). Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune.checkpoint.adapter import PREFIX, Adapter
from edgetune.checkpoint.adapter_fields import is_plain_lora
from edgetune.checkpoint.folder import EMBEDDING, HEAD
from edgetune.errors import INPUT_REFUSED, Problem

NAME = "combined"  # what PEFT's model calls the result
ONE_BY_ONE = "leave `combine` out for a plain sum, or build each of them on its own"


def combine_problems(adapters: Sequence[Adapter], settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Why these adapters cannot be combined this way (`settings`: a recipe's `combine`)."""
    how, density, rank = settings["how"], settings["density"], settings["rank"]
    by_svd = how.endswith("svd")
    if len(adapters) < 2:
        yield Problem(f"combine: {how} needs two adapters or more", "leave `combine` out")
    if how in ("cat", "svd") and density is not None:
        yield Problem(f"combine: {how} keeps all values and has no density", "leave it out")
    if how not in ("cat", "svd") and density is None:
        yield Problem(f"combine: {how} needs a density", "for example density: 0.5")
    if rank is not None and not by_svd:
        yield Problem(f"combine: {how} has no rank of its own", f"leave it out, or take {how}_svd")
    for adapter in adapters:
        if why := _refusal(adapter):
            yield Problem(f"{adapter.path}: combine: {how}: {why}", ONE_BY_ONE, INPUT_REFUSED)
    if adapters and adapters[0].config.get("use_rslora"):
        message = (
            f"{adapters[0].path}: combine: {how}: the first adapter is rsLoRA, and PEFT would "
            "scale the result by the square root of its rank"
        )
        yield Problem(message, "put another adapter first, or leave `combine` out", INPUT_REFUSED)
    ranks = {adapter.rank for adapter in adapters}
    if how != "cat" and not by_svd and len(ranks) > 1:
        told = ", ".join(str(r) for r in sorted(ranks))
        message = f"combine: {how} needs adapters of one rank, these have {told}"
        yield Problem(message, f"take {how}_svd", INPUT_REFUSED)


def _refusal(adapter: Adapter) -> str | None:
    if not is_plain_lora(adapter.config) or adapter.config.get("layer_replication"):
        return "only plain LoRA adapters can be combined"
    if adapter.use_dora:
        return "PEFT combines A and B, and leaves the magnitudes of DoRA out"
    if adapter.config.get("lora_bias"):
        return "PEFT combines A and B, and leaves their biases (lora_bias) out"
    modules = (EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight"))
    if any(name.removeprefix(PREFIX).startswith(modules) for name in adapter.tensors):
        return "adapters on embeddings add up in a plain sum only"
    return None
