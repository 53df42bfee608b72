"""How far the package is from the trained model, at the positions the task scores.

KL(trained ‖ package) = Σ p (log p − log q) in nats, p of the trained model, q of the package. With
the reference step's folder at hand the sum runs over the whole vocabulary. A package alone carries
the top k of each position and the mass of the rest; merging outcomes can only shrink a divergence
(data processing inequality, Cover & Thomas §2.8), so the sum over k + 1 outcomes is a lower bound.

The figures over the given items are exact; the items are a sample of what the model will be asked.
Their intervals say how far another sample could lie: items are resampled with their positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune import statistics
from edgetune.statistics import Interval
from edgetune.validate.self_test import SelfTest

WHOLE_VOCABULARY = "whole vocabulary"
TOP_K_BOUND = "top-k lower bound"

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Positions:
    """What was measured at P positions, in item order: [P] each, in nats; NaN where the package's
    output was not finite."""

    kl: npt.NDArray[np.float64]
    target_logprob: npt.NDArray[np.float64]
    same_top1: npt.NDArray[np.bool_]

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """[P] where the package gave finite numbers."""
        return np.isfinite(self.kl) & np.isfinite(self.target_logprob)


def kl_whole(reference: Floats, candidate: Floats) -> npt.NDArray[np.float64]:
    """KL(reference ‖ candidate) [T] of log-probabilities [T, V]. Never below 0: rounding is cut."""
    sums = np.empty(len(reference))
    # Row by row: a vocabulary in float64 is megabytes.
    for row in range(len(reference)):
        p, q = reference[row].astype(np.float64), candidate[row].astype(np.float64)
        # A token that the reference excludes adds nothing: 0 · log 0 = 0.
        sums[row] = (np.exp(p) * (np.where(np.isneginf(p), 0.0, p) - q)).sum()
    return np.maximum(sums, 0.0)


def kl_top_k(
    top_ids: npt.NDArray[np.int64], top: Floats, rest: Floats, candidate: Floats
) -> npt.NDArray[np.float64]:
    """The lower bound of KL [T] from top-k log-probabilities [T, K], the log mass of the rest [T]
    and the candidate's log-probabilities [T, V]."""
    p, p_rest = top.astype(np.float64), rest.astype(np.float64)
    q = candidate.astype(np.float64)
    chosen = np.take_along_axis(q, top_ids, axis=1)
    kl = (np.exp(p) * (p - chosen)).sum(axis=1)
    # The remainder of a top k that is the whole vocabulary is rounding.
    if top_ids.shape[1] < q.shape[1]:
        np.put_along_axis(q, top_ids, -np.inf, axis=1)
        largest = q.max(axis=1)
        q_rest = largest + np.log(np.exp(q - largest[:, None]).sum(axis=1))
        kl += np.exp(p_rest) * (p_rest - q_rest)
    bound: npt.NDArray[np.float64] = np.maximum(kl, 0.0)
    return bound


def fidelity(self_test: SelfTest, measured: Positions, kl_kind: str) -> dict[str, Any]:
    """The report's `fidelity` section; a figure without meaning is null, with a reason."""
    items, finite = len(self_test.items), measured.finite
    reasons: dict[str, str] = {}
    names = ("perplexity_ratio", "kl_mean", "kl_p99", "top1_agreement", "retention", "kl_base")
    figures: dict[str, Any] = dict.fromkeys(names)
    bad = int((~finite).sum())
    if bad:
        reason = f"the package's output is not finite at {bad} of {len(finite)} positions"
        reasons = dict.fromkeys((*names, "kl_by_position"), reason)
    else:
        figures.update(_figures(self_test, measured))
        if figures["retention"] is None:
            reasons["retention"] = reasons["kl_base"] = _why_no_retention(self_test)
    return {
        **figures,
        "kl_kind": kl_kind,
        "items": items,
        "positions": len(finite),
        "non_finite_positions": bad,
        "kl_by_position": None if bad else kl_by_position(self_test.item_of, measured.kl),
        "reasons": reasons,
    }


def _figures(self_test: SelfTest, measured: Positions) -> dict[str, Any]:
    item_of, n = self_test.item_of, len(self_test.items)

    def per_item(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        weights = np.asarray(values, dtype=np.float64)
        return np.bincount(item_of, weights, n).astype(np.float64)

    def over_positions(values: npt.ArrayLike) -> Interval:
        return statistics.ratio_of_sums(per_item(values), per_item(np.ones(len(item_of))))

    loss = self_test.target_logprob.astype(np.float64) - measured.target_logprob
    figures = {
        "perplexity_ratio": statistics.mapped(over_positions(loss), np.exp).as_dict(),
        "kl_mean": over_positions(measured.kl).as_dict(),
        "kl_p99": statistics.quantile(measured.kl, item_of, 0.99).as_dict(),
        "top1_agreement": over_positions(measured.same_top1).as_dict(),
        "retention": None,
        "kl_base": None,
    }
    if self_test.base_kl is not None and self_test.base_kl.sum() > 0:
        base = self_test.base_kl.astype(np.float64)
        lost = statistics.ratio_of_sums(per_item(measured.kl), per_item(base))
        kept = Interval(1 - lost.value, 1 - lost.high, 1 - lost.low)
        figures["retention"] = kept.as_dict()
        figures["kl_base"] = over_positions(base).as_dict()
    return figures


def kl_by_position(
    item_of: npt.NDArray[np.int64], kl: npt.NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Mean KL by place in the answer: [{first, last, positions, kl}], places counted from 1.

    `item_of` [P]: each position's item, in order; `kl` [P], finite, nats. The places 1 to 4 stand
    alone, then each group is as long as all before it; the last one ends where the answers do.
    """
    starts = np.flatnonzero(np.diff(item_of, prepend=-1))
    # [P] from 1: distance to the item's first position.
    counts = np.diff(np.append(starts, len(item_of)))
    place = np.arange(len(item_of)) - np.repeat(starts, counts) + 1
    longest, n = int(place.max(initial=0)), int(item_of.max(initial=-1)) + 1
    found, first = [], 1
    while first <= longest:
        last = min(first if first < 5 else 2 * (first - 1), longest)
        here = (place >= first) & (place <= last)
        sums = np.bincount(item_of[here], kl[here], n)
        mean = statistics.ratio_of_sums(sums, np.bincount(item_of[here], minlength=n))
        found.append(
            {"first": first, "last": last, "positions": int(here.sum()), "kl": mean.as_dict()}
        )
        first = last + 1
    return found


def _why_no_retention(self_test: SelfTest) -> str:
    if self_test.base_kl is None:
        return "no base model to compare with: a full fine-tune names it as base_before"
    return "the fine-tune changed nothing at these positions"
