"""The text that sensitivities are measured on: calibration data, else what the model itself says.

Never the evaluation items: a choice made on them would flatter its own examination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.errors import UsageError
from edgetune.reference.own_text import own_items
from edgetune.reference.render import ScoredItem, render_items
from edgetune.reference.survival_worker import choose_items
from edgetune.reference.tokenizer import context_length, eos_token_ids, load_tokenizer
from edgetune.tasks import load_task

Progress = Callable[[str], None]

DATA_SOURCE, OWN_SOURCE = "calibration data", "sampled text"
# Of one item: what goes beyond would be fed to the model in parts.
_MOST_POSITIONS, _MOST_LOGITS = 256, 1 << 25
# Of all items together: more text sharpens nothing, less tells too little.
_MOST_TOKENS = 2048
FEWEST_POSITIONS = 64
_FEWEST_REST, _MOST_REST = 1024, 128


def calibration_items(
    model: Any,
    checkpoint: Path,
    calibration: Path | None,
    task: str,
    seed: int,
    modules: int,
    progress: Progress,
) -> tuple[str, tuple[ScoredItem, ...], tuple[ScoredItem, ...]]:
    """(source, items, the rest). The items are as many as the time for so many modules allows,
    spread evenly over the data; the same ones on every machine. The rest is what GPTQ may see where
    KL is measured on the items; too short a rest is made up for with the items themselves.

    Raises UsageError for calibration data with too few positions, or unfit items.
    """
    tokenizer = load_tokenizer(checkpoint)
    eos, context = eos_token_ids(checkpoint, tokenizer), context_length(checkpoint)
    if calibration is None:
        own = own_items(model, tokenizer, eos, context, seed, progress)
        # The built-in paragraphs are evaluation items where the recipe names no data.
        source, items = OWN_SOURCE, [item for item in own if item.id.startswith("sample/")]
    else:
        rows = load_task(task).load_items(calibration)
        source, items = DATA_SOURCE, render_items(rows, tokenizer, eos, context, progress)
    vocabulary = int(model.config.get_text_config().vocab_size)
    most = min(_MOST_POSITIONS, _MOST_LOGITS // vocabulary)
    items = [_cut(item, most) for item in items if item.positions]
    positions = sum(item.positions for item in items)
    if positions < FEWEST_POSITIONS:
        place = calibration or "the text that the model samples"
        msg = (
            f"{place}: calibration data too short: {positions} scored tokens, at least "
            f"{FEWEST_POSITIONS} are needed to tell what a module costs"
        )
        raise UsageError(msg, "give more calibration items with data.calibration")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    chosen = _few(choose_items(items, parameters, modules).items)
    measured = {item.id for item in chosen}
    rest = tuple(item for item in items if item.id not in measured)[:_MOST_REST]
    return source, chosen, rest if _tokens(rest) >= _FEWEST_REST else (*rest, *chosen)


def _cut(item: ScoredItem, positions: int) -> ScoredItem:
    return replace(item, target_ids=item.target_ids[:positions])


def _few(items: Sequence[ScoredItem]) -> tuple[ScoredItem, ...]:
    """Items spread evenly that hold at most `_MOST_TOKENS` tokens, prompts included."""
    count = max(1, min(len(items), _MOST_TOKENS * len(items) // max(1, _tokens(items))))
    return tuple(items[number * len(items) // count] for number in range(count))


def _tokens(items: Sequence[ScoredItem]) -> int:
    return sum(len(item.prompt_ids) + item.positions for item in items)
