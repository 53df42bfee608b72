"""The trained model on long texts: `self_test/long_context/`, in the form of a self-test.

A stretch is an item with a long prompt and up to 32 targets, scored as any other: a LongRoPE model
reads the text anew where it changes its tables. The text is that of the measured items, from the
first on and again from the start until it is long enough, so that nothing ships that does not
already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from edgetune.files import dump_json, write_text
from edgetune.reference.divergence import to_log_probabilities
from edgetune.reference.measure import write_logits
from edgetune.reference.render import ScoredItem
from edgetune.reference.rows import RowFile
from edgetune.reference.self_test import Reference, write_self_test
from edgetune.tasks import load_task

FOLDER, LENGTHS = "long_context", "lengths.json"
SOURCE = "measured items, one after another"


def stretch_items(
    lengths: Mapping[str, Any], items: Sequence[ScoredItem]
) -> tuple[ScoredItem, ...]:
    """An item for each of `lengths["stretches"]`: its first target is predicted after `first`
    tokens, its last one after `last`."""
    tokens = [token for item in items for token in (*item.prompt_ids, *item.target_ids)]
    stretches = lengths["stretches"]
    longest = max((stretch["last"] for stretch in stretches), default=0)
    text = tuple(islice(cycle(tokens), longest + 1))
    return tuple(
        ScoredItem(
            f"{stretch['what']} {stretch['at']}",
            text[: stretch["first"]],
            text[stretch["first"] : stretch["last"] + 1],
            "",
            None,
        )
        for stretch in stretches
    )


def measure_long_context(
    model: Any,
    lengths: Mapping[str, Any],
    items: Sequence[ScoredItem],
    place: Path,
    progress: Callable[[str], None],
) -> tuple[tuple[ScoredItem, ...], RowFile | None]:
    """(stretches, the trained model's logits there in a new file at `place`); none of either where
    nothing can be measured. Raises StepFailedError where logits are not finite."""
    stretches = stretch_items(lengths, items)
    if not stretches:
        return (), None
    return stretches, write_logits(model, stretches, place, "trained model, long context", progress)


def write_long_context(
    self_test: Path,
    lengths: Mapping[str, Any],
    reference: Reference,
    stretches: Sequence[ScoredItem],
    rows: RowFile | None,
) -> None:
    """Write `long_context/` into a self-test's folder: `lengths.json`, what was to be measured and
    what was not, and unless nothing was a self-test of its own. `rows`: logits [positions,
    vocabulary]; `reference`: of the items that the text is made of."""
    folder = self_test / FOLDER
    if rows is not None:
        to_log_probabilities(rows)
        long = replace(
            reference,
            source=SOURCE,
            items=stretches,
            items_in_data=len(stretches),
            positions_in_data=rows.rows,
            answers=[None] * len(stretches),
            base=None,
            tokenizer_cases={},
        )
        write_self_test(folder, long, rows, load_task(reference.task_name))
    write_text(folder / LENGTHS, dump_json(dict(lengths)))
