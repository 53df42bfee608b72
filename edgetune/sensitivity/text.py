"""The text that sensitivities are measured on: calibration data, else what the model itself says.

Never the evaluation items: a choice made on them would flatter its own examination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune.errors import UsageError
from edgetune.reference.own_text import own_items
from edgetune.reference.render import ScoredItem, render_items
from edgetune.reference.tokenizer import context_length, eos_token_ids, load_tokenizer
from edgetune.tasks import load_task

Progress = Callable[[str], None]

DATA_SOURCE, OWN_SOURCE = "calibration data", "sampled text"
# Of one item: what goes beyond would be fed to the model in parts.
_MOST_POSITIONS, _MOST_LOGITS = 256, 1 << 25
# Of all items together: more text sharpens nothing, less tells too little.
_MOST_TOKENS, _FEWEST_TOKENS, _FEWEST_ITEMS = 2048, 256, 4
FEWEST_POSITIONS = 64
_FEWEST_REST, _MOST_REST = 1024, 128
# What passes over all modules may take, and what GPTQ's walks through all layers: some minutes of
# two slow cores each.
_MOST_OPERATIONS, _MOST_OPERATIONS_OF_GPTQ = 1.5e13, 1e13
# Two widths of each module; one where the time is not enough for this many tokens.
_ENOUGH_TOKENS = 1024
# Layers of GPTQ's text: once for the modules alone, then for each allocation as a whole, each time
# for the sums and for what comes behind.
_WALKS = 8


@dataclass(frozen=True)
class CalibrationText:
    """`items`: what KL is measured on; `rest`: what GPTQ may see meanwhile; `both`: whether there
    is time to measure each module at two widths."""

    source: str
    items: tuple[ScoredItem, ...]
    rest: tuple[ScoredItem, ...]
    both: bool


def calibration_text(
    model: Any,
    checkpoint: Path,
    calibration: Path | None,
    task: str,
    seed: int,
    modules: int,
    progress: Progress,
) -> CalibrationText:
    """The items are as many as the time for so many modules allows, spread evenly over the data;
    the same ones on every machine. Too short a rest is made up for with the items themselves.

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
    longest = min(_MOST_POSITIONS, _MOST_LOGITS // vocabulary)
    items = [_cut(item, longest) for item in items if item.positions]
    positions = sum(item.positions for item in items)
    if positions < FEWEST_POSITIONS:
        place = calibration or "the text that the model samples"
        msg = (
            f"{place}: calibration data too short: {positions} scored tokens, at least "
            f"{FEWEST_POSITIONS} are needed to tell what a module costs"
        )
        raise UsageError(msg, "give more calibration items with data.calibration")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    most, both = tokens_to_measure(parameters, modules)
    # Of little text, parts of a few items rather than all of one.
    part = max(FEWEST_POSITIONS, most // _FEWEST_ITEMS)
    chosen = _few([_cut(item, part) for item in items], most)
    measured = {item.id for item in chosen}
    rest = [item for item in items if item.id not in measured][:_MOST_REST]
    seen = _few(rest, max(_FEWEST_REST, int(_MOST_OPERATIONS_OF_GPTQ / (2 * _WALKS * parameters))))
    if _tokens(seen) < _FEWEST_REST:
        seen = (*rest, *chosen)
    return CalibrationText(source, chosen, seen, both)


def tokens_to_measure(parameters: int, modules: int) -> tuple[int, bool]:
    """(how many tokens, whether at two widths) in the time that passes over all modules may take;
    a pass is two operations a parameter and token."""
    most = int(_MOST_OPERATIONS / (2.0 * parameters * max(1, modules)))
    both = most // 2 >= _ENOUGH_TOKENS
    return min(_MOST_TOKENS, max(_FEWEST_TOKENS, most // 2 if both else most)), both


def _cut(item: ScoredItem, positions: int) -> ScoredItem:
    return replace(item, target_ids=item.target_ids[:positions])


def _few(items: Sequence[ScoredItem], most: int) -> tuple[ScoredItem, ...]:
    """Items spread evenly that hold about `most` tokens, prompts included, and enough positions."""
    if not items:
        return ()
    count = max(1, min(len(items), most * len(items) // max(1, _tokens(items))))
    while True:
        few = tuple(items[number * len(items) // count] for number in range(count))
        if count == len(items) or sum(item.positions for item in few) >= FEWEST_POSITIONS:
            return few
        count += 1


def _tokens(items: Sequence[ScoredItem]) -> int:
    return sum(len(item.prompt_ids) + item.positions for item in items)
