"""What the merge tests share: call the step, compare it with the unmerged model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune.merge.merge import merge_step

NF4 = {"type": "nf4", "double_quant": False, "compute_dtype": "bfloat16"}
NF4_DOUBLE = {"type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
FP4 = {"type": "fp4", "double_quant": False, "compute_dtype": "float32"}


def weighted(adapters: Sequence[Path | tuple[Path, float]]) -> list[dict[str, Any]]:
    """Adapters as a step's arguments; a bare path has weight 1."""
    pairs = [a if isinstance(a, tuple) else (a, 1.0) for a in adapters]
    return [{"path": str(path), "weight": weight} for path, weight in pairs]


def merge(
    out: Path, base: Path, adapters: Sequence[Path | tuple[Path, float]] = (), *,
    trained_as: dict[str, Any] | None = None, onto: str = "dequantized",
    merge_dtype: str = "float32", combine: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Merge into `out`, which is made; the facts."""
    out.mkdir(parents=True)
    arguments = {
        "base": {"path": str(base), "trained_as": trained_as},
        "adapters": weighted(adapters),
        "combine": combine,
        "onto": onto,
        "merge_dtype": merge_dtype,
    }
    return merge_step(arguments, out, lambda _: None)


def parity(
    out: Path, base: Path, adapters: Sequence[Path | tuple[Path, float]], *,
    trained_as: dict[str, Any] | None = None, onto: str = "dequantized",
    combine: dict[str, Any] | None = None,
) -> tuple[float, float, float]:  # fmt: skip
    """(largest difference to the unmerged model, largest |logit|, what the adapters change)."""
    from edgetune.checkpoint.trained import load_base_alone, load_plain, load_trained_model
    from tests.tiny import logits

    given = weighted(adapters)
    unmerged = logits(load_trained_model(base, trained_as, given, onto, combine))
    merged = logits(load_plain(out))
    alone = logits(load_base_alone(base, trained_as if onto == "dequantized" else None, given))
    difference = float((merged - unmerged).abs().max())
    return difference, float(unmerged.abs().max()), float((unmerged - alone).abs().max())
