"""How much the adapters change each tensor, and what storing the result takes from that.

Taken while the merged blocks are on their way to the file, some rows at a time: the base's rows
are read again and nothing else is. Norms are Frobenius norms. What float32 arithmetic itself
rounds is not in these figures; the parity with the unmerged model bounds it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgetune.checkpoint.tensors import Rows

_CHUNK_VALUES = 1 << 20
_WORST = 10


@dataclass
class Change:
    """Sums of squares over a tensor that adapters change, W the base's and W' the merged one."""

    name: str
    values: int = 0
    weight: float = 0.0  # Σ W²
    delta: float = 0.0  # Σ (W' − W)²
    lost: float = 0.0  # Σ (stored − W')²

    def add(self, base: torch.Tensor, merged: torch.Tensor, stored: torch.Tensor) -> None:
        """Count some rows, all of the same shape: W and W' in float32, and W' as stored."""
        self.values += base.numel()
        self.weight += _squares(base)
        self.delta += _squares(merged - base)
        if stored.dtype != torch.float32:
            self.lost += _squares(stored.float() - merged)

    def add_block(
        self, base: Rows, rows: int, start: int, merged: torch.Tensor, stored: torch.Tensor
    ) -> None:
        """Count a block of rows from `start` on; those beyond the base's `rows` are new."""
        height = max(1, _CHUNK_VALUES // max(1, math.prod(merged.shape[1:])))
        last = min(merged.shape[0], rows - start)
        for first in range(0, last, height):
            stop = min(first + height, last)
            own = base(start + first, start + stop)
            self.add(own, merged[first:stop], stored[first:stop])

    @property
    def module(self) -> str:
        """The module whose weight it is; the tensor's own name for anything but a weight."""
        return self.name.removesuffix(".weight")

    def as_json(self) -> dict[str, Any]:
        """`delta_relative` = ‖W' − W‖ / ‖W‖; `rounding_relative` = ‖stored − W'‖ / ‖W' − W‖, null
        where nothing was changed. To four digits: sums depend on the processor in the last ones."""
        delta = math.sqrt(self.delta / self.weight) if self.weight else None
        lost = math.sqrt(self.lost / self.delta) if self.delta else None
        return {
            "name": self.module,
            "values": self.values,
            "delta_relative": _digits(delta),
            "rounding_relative": _digits(lost),
        }


def modules_of(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """Every adapted module, those first of whose change storing took the most; of equals those
    first that were changed least. A bias beside an adapted weight is told only if it changed."""
    told = [c for c in changes if c.delta or c.name.endswith(".weight")]
    rows = [change.as_json() for change in told]
    return sorted(
        rows,
        key=lambda r: (-(r["rounding_relative"] or 0.0), r["delta_relative"] or 0.0, r["name"]),
    )


def summary_of(modules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a report says of `modules_of`: how many, the median and the extremes, the first ten."""

    def spread(key: str) -> dict[str, float] | None:
        known = sorted(row[key] for row in modules if row[key] is not None)
        if not known:
            return None
        middle = statistics.median_low(known)
        return {"smallest": known[0], "median": middle, "largest": known[-1]}

    return {
        "count": len(modules),
        "delta_relative": spread("delta_relative"),
        "rounding_relative": spread("rounding_relative"),
        "worst": [dict(row) for row in modules[:_WORST]],
    }


def _squares(values: torch.Tensor) -> float:
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
