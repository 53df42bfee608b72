"""Calibration text as token ids: the recipe's, or what the trained model says when it is sampled.

A scheme that rounds by calibration text weighs each input of a module by how it occurs there. The
samples are drawn with a seed that no sample of the evaluation has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgetune.errors import UsageError
from edgetune.files import write_text
from edgetune.reference.cache_scales import write_cache_scales
from edgetune.reference.generation import sample
from edgetune.reference.measure import deterministic, threads_for, with_model
from edgetune.reference.own_text import make_prompts
from edgetune.reference.render import render_items
from edgetune.reference.tokenizer import context_length, eos_token_ids, load_tokenizer
from edgetune.tasks import load_task

FILE = "calibration.json"
# Fewer say too little of how inputs go together; more cost time (chosen, not measured).
FEWEST_TOKENS, MOST_TOKENS = 1024, 16384
DATA_SOURCE, OWN_SOURCE = "calibration data", "text sampled from the trained model"
_NEW_TOKENS = 128
# The reference's samples have the recipe's seed.
_SEED_DISTANCE = 1000
# So many times all prompts are continued at most, where the answers are short.
_MOST_ROUNDS = 8
_OWN_TOKENS = 2048


def calibration_step(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Write `calibration.json`, [[token ids of one text]], into `out`.

    arguments: checkpoint (the merged folder), task, data (JSON lines, or null: text is sampled from
    the checkpoint), seed, threads, layered (the model does not fit the memory), cache_scales
    (whether `cache_scales.json` is written too). Facts: source,
    texts, tokens. Raises UsageError where that is too short, or an item does not fit.
    """
    checkpoint = Path(arguments["checkpoint"])
    tokenizer = load_tokenizer(checkpoint)
    eos, context = eos_token_ids(checkpoint, tokenizer), context_length(checkpoint)
    data = arguments["data"]
    if data is not None:
        items = load_task(arguments["task"]).load_items(Path(data))
        rendered = render_items(items, tokenizer, eos, context, progress)
        texts = [[*item.prompt_ids, *item.target_ids] for item in rendered]
    else:
        texts = _sampled(arguments, checkpoint, tokenizer, eos, context, progress)
    chosen = _first_of(texts, MOST_TOKENS)
    tokens = sum(map(len, chosen))
    if tokens < FEWEST_TOKENS:
        what = str(data) if data is not None else "what the trained model says"
        msg = f"{what}: {tokens} tokens are too few to calibrate on, {FEWEST_TOKENS} are the least"
        hint = "add rows to data.calibration, or choose a scheme that rounds to nearest (w4a16-rtn)"
        raise UsageError(msg, hint)
    write_text(out / FILE, json.dumps(chosen))
    if arguments.get("cache_scales"):
        from edgetune.checkpoint.trained import load_plain

        scratch = checkpoint.parent if arguments.get("layered") else None
        write_cache_scales(load_plain(checkpoint, torch.float32, scratch), chosen, out, progress)
    source = OWN_SOURCE if data is None else DATA_SOURCE
    return {"source": source, "texts": len(chosen), "tokens": tokens}


def _first_of(texts: Sequence[list[int]], most: int) -> list[list[int]]:
    """Texts from the first on while they fit; the last one is cut."""
    chosen: list[list[int]] = []
    left = most
    for text in texts:
        if left < 2:
            break
        chosen.append(text[:left])
        left -= len(chosen[-1])
    return chosen


def _sampled(
    arguments: Mapping[str, Any],
    checkpoint: Path,
    tokenizer: Any,
    eos: Sequence[int],
    context: int | None,
    progress: Callable[[str], None],
) -> list[list[int]]:
    """At least 2048 tokens, where eight samples of each prompt have so many."""
    from edgetune.checkpoint.trained import load_plain

    prompts = [ids for _, ids in make_prompts(tokenizer)]
    room = _NEW_TOKENS if context is None else context - max(map(len, prompts))
    scratch = checkpoint.parent if arguments.get("layered") else None

    def draw(model: Any) -> list[list[int]]:
        texts: list[list[int]] = []
        for turn in range(_MOST_ROUNDS):
            if sum(map(len, texts)) >= _OWN_TOKENS:
                break
            seed = int(arguments["seed"]) + _SEED_DISTANCE + turn
            answers = sample(
                model,
                prompts,
                eos,
                min(_NEW_TOKENS, room),
                seed,
                lambda done: progress(f"calibration: sample {done} of {len(prompts)}"),
            )
            texts += [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
        return texts

    with deterministic(threads_for(checkpoint, int(arguments["threads"]))):
        return with_model(lambda: load_plain(checkpoint, torch.float32, scratch), draw)
