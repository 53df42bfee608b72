"""A model's long texts, measured in torch without the rest of the reference step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgetune.checkpoint.trained import load_plain
from edgetune.lengths import LongContext
from edgetune.reference.long_context import measure_long_context, write_long_context
from edgetune.reference.render import ScoredItem
from edgetune.reference.self_test import Reference


def write_long_texts(base: Path, self_test: Path, lengths: LongContext) -> None:
    """Write `long_context/` into the folder `self_test`, of random text."""
    ids = np.random.default_rng(0).integers(0, 256, 9000).tolist()
    items = (ScoredItem("1", tuple(ids[:4000]), tuple(ids[4000:]), "", None),)
    place = self_test / "rows.npy"
    stretches, rows = measure_long_context(
        load_plain(base), lengths.as_json(), items, place, lambda _: None
    )
    reference = Reference("text-generation", "", 0, items, 1, 5000, [None], None, [259], {}, {})
    assert rows is not None
    with rows:
        write_long_context(self_test, lengths.as_json(), reference, stretches, rows)
    place.unlink()
