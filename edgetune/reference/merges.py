"""The merged checkpoints against what they must be, and against the trained model: the certificate.

Each merge is held to parity with the unmerged model over the base it was made onto. How far it is
from the *trained* model is measured beside it: over a 4-bit base that is another question, for a
merge onto the original weights is exact in its arithmetic and still another model. With `onto:
auto` there are two, and the one nearer to the trained model (mean KL) is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune import statistics
from edgetune.errors import StepFailedError
from edgetune.reference.measure import Distance, measure_distance, with_model, write_logits
from edgetune.reference.render import ScoredItem
from edgetune.reference.rows import RowFile
from edgetune.statistics import Interval

Progress = Callable[[str], None]
Load = Callable[[], Any]

# The largest difference of logits between merged and unmerged, in units of the largest logit.
PARITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Candidate:
    """One merged checkpoint, measured: `against` is the unmerged model that parity is with."""

    onto: str
    against: str
    distance: Distance
    # From the trained model, over the scored positions; items are resampled.
    kl_mean: Interval
    top1_agreement: Interval


def measure_candidate(
    onto: str,
    load: Load,
    load_original: Load,
    items: Sequence[ScoredItem],
    trained: RowFile,
    scratch: Path,
    progress: Progress,
) -> Candidate:
    """Measure the checkpoint that `load` gives, made onto the `dequantized` or `original` base.

    `load_original` gives the adapters over the original base, unmerged; its logits go into a file
    in `scratch` for a moment. `trained` holds the trained model's logits.
    """
    if onto != "original":
        progress("merged checkpoint: loading")
        distance = with_model(load, lambda model: measure_distance(model, items, trained, progress))
        return _candidate(onto, "trained model", distance, items)
    # Merged onto other weights than the adapter saw: the arithmetic is checked against the
    # adapters over those.
    path, label = scratch / "original.npy", "adapters over the original base"
    progress(f"{label}: loading")
    original = with_model(
        load_original, lambda model: write_logits(model, items, path, label, progress)
    )
    try:
        with original:
            progress("checkpoint merged onto the original: loading")
            distance = with_model(
                load,
                lambda model: measure_distance(model, items, trained, progress, original),
            )
    finally:
        path.unlink()
    return _candidate(onto, label, distance, items)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The one with the smallest mean KL from the trained model; the first of equals."""
    return min(candidates, key=lambda candidate: candidate.kl_mean.value)


def certificate(candidates: Sequence[Candidate], chosen: Candidate, four_bit: bool) -> Any:
    """The report's `merge.certificate`. `onto` is null where the base never was 4-bit."""

    def onto(candidate: Candidate) -> str | None:
        return candidate.onto if four_bit else None

    return {
        "chosen": onto(chosen),
        "positions": len(chosen.distance.kl),
        "candidates": [
            {
                "onto": onto(c),
                "kl_mean": c.kl_mean.as_dict(),
                "top1_agreement": c.top1_agreement.as_dict(),
                "parity_max_abs": c.distance.max_abs,
                "parity_against": c.against,
            }
            for c in candidates
        ],
    }


def judge_parity(candidate: Candidate, merge_dtype: str) -> dict[str, Any]:
    """The facts about parity. Raises StepFailedError when it is missed and enforced.

    A checkpoint stored in the base's data type is rounded on purpose; it is reported only.
    """
    distance = candidate.distance
    limit = PARITY_TOLERANCE * max(1.0, distance.largest_logit)
    enforced = merge_dtype == "float32"
    if enforced and not distance.max_abs <= limit:
        msg = (
            f"the merged checkpoint is not the same model as the {candidate.against}: logits "
            f"differ by up to {distance.max_abs:.3g}, allowed are {limit:.3g} "
            f"({PARITY_TOLERANCE:g} × the largest logit, {distance.largest_logit:.3g})"
        )
        raise StepFailedError(msg, "the merge is not exact; please report it with the recipe")
    return {
        "parity_max_abs": distance.max_abs,
        "parity_limit": limit,
        "parity_enforced": enforced,
        "parity_against": candidate.against,
        "largest_logit": distance.largest_logit,
    }


def _candidate(
    onto: str, against: str, distance: Distance, items: Sequence[ScoredItem]
) -> Candidate:
    sizes = [item.positions for item in items]
    item_of = np.repeat(np.arange(len(items)), sizes)

    def over_positions(values: npt.NDArray[Any]) -> Interval:
        per_item = np.bincount(item_of, values.astype(np.float64), len(items))
        return statistics.ratio_of_sums(per_item, np.array(sizes, dtype=np.float64))

    kl, same = over_positions(distance.kl), over_positions(distance.same_top1)
    return Candidate(onto, against, distance, kl, same)


def paths_of(arguments: Mapping[str, Any]) -> dict[str, Path]:
    """{onto: folder} of the merged checkpoints, in the order in which equals are preferred."""
    return {onto: Path(path) for onto, path in arguments["checkpoints"].items()}
