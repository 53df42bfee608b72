"""What quantization leaves of each module's fine-tune, from the weights alone.

For a module with base weight W, merged weight W' and the graph's weight Q, Δ = W' − W:

* `snr` = ‖Δ‖ / ‖Q − W'‖ (Frobenius norms): the fine-tune over the noise that the quantization adds.
  Below 1 the noise is the larger one. That says where to look, not that the fine-tune is lost:
  noise has no direction, and only a measurement of the answers can tell.
* `below_step`: the share of weights with |Δ| < s / 2, s the step of the weight's own group: by
  itself such a change moves no weight to the next code.
* `step`: the median of s.

The part of Q(W') − Q(W) along Δ is no measure of it: rounding hits a change of a tenth of a step in
one weight of ten with a whole step, so that on average all of Δ is there whatever the step is, and
what grows is the noise around it. Modules that no adapter changed have nothing to lose and are not
listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from edgetune.checkpoint.as_seen import weights_as_seen
from edgetune.checkpoint.folder import CheckpointFolder, read_checkpoint
from edgetune.checkpoint.graph_weights import Piece, blocks_of, pieces_of, read_matrices
from edgetune.checkpoint.tensors import Rows, load_rows
from edgetune.errors import StepFailedError
from edgetune.optimize.threads import side_by_side
from edgetune.optimize.widths import NF4, Width, Widths

# Rounding to nearest is off by half a step, and by one where the largest of a group is cut.
_MOST_STEPS = 1.01
# Others cut more, or move a weight further to make up for its neighbours' errors; but none by as
# much as the weights themselves.
_TO_NEAREST = ("rtn", NF4)
_EMBEDDING = "model.embed_tokens"
_BLOCK_VALUES = 1 << 19


def survival(
    folder: Path,
    checkpoint: Path,
    base: Mapping[str, Any] | None,
    widths: Widths,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """{"modules": [{name, values, delta_relative, step, below_step, snr}], worst first, "reason":
    why there is nothing, or null, "not_found": modules that the graph does not hold by name}.

    `folder`: the graph's; `checkpoint`: what it was made of; `base` {path, trained_as}: what the
    fine-tune started from, null where that is not named. Raises StepFailedError when a weight of
    the graph is not the checkpoint's.
    """
    nothing: dict[str, Any] = {"modules": [], "not_found": []}
    if base is None:
        return {**nothing, "reason": "no base to compare with: name it as base_before"}
    matrices = read_matrices(folder)
    if not matrices:
        return {**nothing, "reason": "nothing is quantized"}
    merged = read_checkpoint(checkpoint)
    find = weights_as_seen(Path(base["path"]), base["trained_as"])
    shapes = linear_shapes(merged)

    def look_at(module: str) -> tuple[bool, dict[str, Any] | None]:
        """(whether the graph holds it, or need not; its row, null where nothing is to tell)."""
        pieces, own = pieces_of(module, shapes, matrices), find(module)
        width = widths.of(module)
        if module == _EMBEDDING:
            width = widths.of_embedding() if "lm_head" in shapes else widths.of("lm_head")
        if own is None or not width.quantized:
            return True, None
        return bool(pieces), _of_module(merged, module, pieces, *own, width) if pieces else None

    names, rows, not_found = sorted(shapes), [], []
    found = zip(names, side_by_side(look_at, names), strict=True)
    for number, (module, (held, row)) in enumerate(found, 1):
        progress(f"what is left of the fine-tune: module {number} of {len(names)}")
        not_found += [] if held else [module]
        rows += [row] if row else []
    rows.sort(key=lambda row: (math.inf if row["snr"] is None else row["snr"], row["name"]))
    return {"modules": rows, "not_found": not_found, "reason": None}


def linear_shapes(checkpoint: CheckpointFolder) -> dict[str, tuple[int, ...]]:
    """{module: [outputs, inputs]} of every matrix."""
    return {
        name.removesuffix(".weight"): entry.shape
        for name, entry in checkpoint.tensors.items()
        if name.endswith(".weight") and len(entry.shape) == 2
    }


def _of_module(
    merged: CheckpointFolder,
    module: str,
    pieces: list[Piece],
    base_rows: int,
    base: Rows,
    width: Width,
) -> dict[str, Any] | None:
    """One module's figures; None where nothing was changed in it."""
    entry = merged.tensors[f"{module}.weight"]

    def exact_rows(start: int, stop: int) -> torch.Tensor:
        return load_rows(merged.path, entry, start, stop).float()

    if not _is_changed(exact_rows, base, min(base_rows, entry.shape[0]), entry.shape[1]):
        return None
    weight = delta = noise = all_noise = all_weight = 0.0
    below = count = 0
    steps: list[torch.Tensor] = []
    for start, quantized, step in blocks_of(pieces):
        stop = start + quantized.shape[0]
        exact = exact_rows(start, stop)
        # Rows beyond the base's are of new tokens.
        known = max(0, min(stop, base_rows) - start)
        own = base(start, start + known)
        change, error = exact[:known] - own, quantized - exact
        weight += _squares(own)
        delta += _squares(change)
        noise += _squares(error[:known])
        all_noise, all_weight = all_noise + _squares(error), all_weight + _squares(exact)
        nearest = width.algorithm in _TO_NEAREST
        if nearest and float((error.abs_() - _MOST_STEPS * step).max()) > 1e-30:
            raise _other_weights(module)
        below += int(torch.count_nonzero(change.abs_().mul_(2) < step[:known]))
        count += change.numel()
        # A copy: a view would keep the whole block.
        steps.append(step[:known].flatten()[:: max(1, step.numel() // 8192)].clone())
    if all_noise > all_weight:
        raise _other_weights(module)
    if not delta:
        return None
    return {
        "name": module,
        "values": count,
        "delta_relative": _digits(math.sqrt(delta / weight)) if weight else None,
        "step": _digits(float(torch.cat(steps).median())),
        "below_step": _digits(below / count),
        "snr": _digits(math.sqrt(delta / noise)) if noise else None,
    }


def _is_changed(exact: Rows, base: Rows, rows: int, width: int) -> bool:
    """Whether the fine-tune changed any weight of the base; most modules that it did not touch are
    told from two files alone."""
    height = max(1, _BLOCK_VALUES // width)
    for start in range(0, rows, height):
        stop = min(start + height, rows)
        if not torch.equal(exact(start, stop), base(start, stop)):
            return True
    return False


def _other_weights(module: str) -> StepFailedError:
    msg = f"{module}: the graph's weights are not those of the merged checkpoint, quantized"
    return StepFailedError(msg, "this is an error in edgetune; please report it")


def _squares(values: torch.Tensor) -> float:
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))


def _digits(value: float) -> float:
    """Four digits: the last ones depend on how the processor adds."""
    return float(f"{value:.4g}")
