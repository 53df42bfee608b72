"""The package on long texts: where the model's arithmetic changes with the length, and at its
context window.

Measured on what the package carries in `self_test/long_context/`, as a device does, so KL is the
lower bound from the top k. A stretch is 32 neighbouring positions of one text, which depend on each
other: blocks of four are resampled, never single positions (block bootstrap; Davison & Hinkley
1997, §8.2), and on each side of a threshold by itself: that half of them lies beyond it is no
accident, and what is lost there shows there alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune import statistics
from edgetune.errors import InputRefusedError
from edgetune.files import read_json
from edgetune.host import available_memory_bytes
from edgetune.runtime.decoder import score
from edgetune.runtime.session import OpenPackage
from edgetune.validate.fidelity import TOP_K_BOUND, Positions, kl_top_k
from edgetune.validate.self_test import SelfTest, load_self_test

FOLDER = "long_context"
BLOCK = 4
_AGAIN = "build the package again, or copy it again from where it came from"


def long_context(
    opened: OpenPackage, self_test: Path, progress: Callable[[str], None]
) -> dict[str, Any] | None:
    """The report's `long_context` section, of the `self_test` folder that ships; null where the
    package carries no long texts: its model's arithmetic is the same at every length.

    A stretch that does not fit the memory that is free has no figures, and the reason. Raises
    InputRefusedError for a folder whose parts do not belong together.
    """
    folder = self_test / FOLDER
    if not folder.is_dir():
        return None
    lengths = _read_lengths(folder / "lengths.json")
    stretches: list[dict[str, Any]] = []
    if lengths["stretches"]:
        texts = load_self_test(folder)
        _check_fit(opened, texts, lengths, folder)
        for number, stretch in enumerate(lengths["stretches"]):
            progress(f"long context: {stretch['last']} tokens")
            stretches.append(_measured(opened, texts, number, stretch))
    return {
        "window": lengths["window"],
        "kl_kind": TOP_K_BOUND,
        "stretches": stretches,
        "not_measured": lengths["not_measured"],
    }


def stretch_figures(positions: Positions, beyond: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """`kl_mean` (nats) and `top1_agreement` of a stretch, each {value, low, high}; null with a
    reason where an output is not finite. `beyond` [P]: which positions lie past the threshold."""
    count, bad = len(positions.kl), int((~positions.finite).sum())
    figures: dict[str, Any] = {"kl_mean": None, "top1_agreement": None, "reason": None}
    if bad:
        figures["reason"] = f"the package's output is not finite at {bad} of {count} positions"
    else:
        figures["kl_mean"] = _mean_of_blocks(positions.kl, beyond)
        figures["top1_agreement"] = _mean_of_blocks(positions.same_top1, beyond)
    return {"positions": count, "non_finite_positions": bad, **figures}


def _measured(
    opened: OpenPackage, texts: SelfTest, number: int, stretch: Mapping[str, Any]
) -> dict[str, Any]:
    head = {key: stretch[key] for key in ("what", "at", "first", "last")}
    free = available_memory_bytes()
    if stretch["bytes"] > free:
        reason = f"it takes about {stretch['bytes'] / 1e9:.1f} GB (predicted), {free / 1e9:.1f} GB "
        none = {"positions": 0, "non_finite_positions": 0, "kl_mean": None, "top1_agreement": None}
        return {**head, **none, "reason": f"{reason}are free here"}
    item, where = texts.items[number], texts.positions(number)
    found = score(opened, item.prompt_ids, item.target_ids)
    kl = kl_top_k(texts.top_ids[where], texts.top_logprobs[where], texts.rest_logprob[where], found)
    targets = found[np.arange(len(found)), list(item.target_ids)].astype(np.float64)
    positions = Positions(kl, targets, found.argmax(axis=1) == texts.top_ids[where, 0])
    beyond = np.arange(stretch["first"], stretch["last"] + 1) > stretch["at"]
    return {**head, **stretch_figures(positions, beyond)}


def _mean_of_blocks(values: npt.ArrayLike, beyond: npt.NDArray[np.bool_]) -> dict[str, float]:
    data = np.asarray(values, dtype=np.float64)
    sides = [data[side] for side in (~beyond, beyond) if side.any()]
    return statistics.stratified_ratio([_blocks(side) for side in sides]).as_dict()


def _blocks(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(sum, count) of each block."""
    block_of = np.arange(len(values)) // BLOCK
    return np.bincount(block_of, values), np.bincount(block_of)


def _read_lengths(path: Path) -> Mapping[str, Any]:
    lengths = read_json(path)
    try:
        whole = [
            lengths["window"],
            *(row[key] for row in lengths["stretches"] for key in ("at", "first", "last", "bytes")),
        ]
        texts = [*lengths["not_measured"], *(row["what"] for row in lengths["stretches"])]
        fit = all(type(n) is int and n > 0 for n in whole) and all(type(t) is str for t in texts)
    except (TypeError, KeyError) as why:
        msg = f"{path}: not the lengths of a long context ({why})"
        raise InputRefusedError(msg, _AGAIN) from why
    if not fit:
        msg = f"{path}: not the lengths of a long context"
        raise InputRefusedError(msg, _AGAIN)
    found: Mapping[str, Any] = lengths
    return found


def _check_fit(
    opened: OpenPackage, texts: SelfTest, lengths: Mapping[str, Any], folder: Path
) -> None:
    said = [(row["first"], row["last"]) for row in lengths["stretches"]]
    held = [
        (len(item.prompt_ids), len(item.prompt_ids) + len(item.target_ids) - 1)
        for item in texts.items
    ]
    if said != held or opened.vocabulary_size != texts.vocabulary_size:
        msg = f"{folder}: its texts are not those of lengths.json, or of another vocabulary"
        raise InputRefusedError(msg, _AGAIN)
    longest = max(last for _, last in held)
    if longest > opened.context_length:
        msg = f"{folder}: a text of {longest} tokens, the model takes {opened.context_length}"
        raise InputRefusedError(msg, _AGAIN)
