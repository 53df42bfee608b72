"""The reference step: what the trained model answers, and the merge's parity with it.

The trained model (base as the adapter saw it, adapters unmerged, float32) is loaded first, then
the base alone, then each merged checkpoint; one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.reference.divergence import to_log_probabilities
from edgetune.reference.measure import (
    BaseAlone,
    deterministic,
    greedy_answers,
    measure_base,
    threads_for,
    with_model,
    write_logits,
)
from edgetune.reference.merges import (
    Candidate,
    certificate,
    choose,
    judge_parity,
    measure_candidate,
    paths_of,
)
from edgetune.reference.own_text import SOURCE as OWN_SOURCE
from edgetune.reference.own_text import own_items
from edgetune.reference.render import ScoredItem, most_positions, render_items, select
from edgetune.reference.rows import RowFile
from edgetune.reference.scoring import vocabulary_size
from edgetune.reference.self_test import Reference, kl_base, write_self_test
from edgetune.reference.tokenizer import (
    context_length,
    eos_token_ids,
    generation_settings,
    load_tokenizer,
)
from edgetune.reference.tokenizer_cases import make_cases
from edgetune.tasks import load_task

Progress = Callable[[str], None]

DATA_SOURCE = "evaluation data"
_ROWS = "logprobs.npy"


@dataclass(frozen=True)
class _Job:
    """What the step's functions share."""

    arguments: Mapping[str, Any]
    out: Path
    progress: Progress
    tokenizer: Any
    eos: list[int]
    context: int | None

    @property
    def scratch(self) -> Path | None:
        """Where the weights go of a model that is run layer by layer; None: into memory."""
        return self.out if self.arguments.get("layered") else None

    def answer(self, items: tuple[ScoredItem, ...], model: Any, label: str) -> list[str | None]:
        """Greedy answers of a model to the items that expect one."""
        return greedy_answers(
            model, self.tokenizer, items, self.eos, self.context, label, self.progress
        )


def reference_step(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """Write `self_test/` and `logprobs.npy` (float32 [positions, vocabulary]) into `out`.

    Arguments: base {path, trained_as}, base_before, adapters [{path, weight}], combine,
    merge_dtype, checkpoints {onto what: merged folder}, task, evaluation (JSON lines or null),
    seed, threads, layered (the model does not fit the memory; changes no result). Facts: chosen
    (onto what the checkpoint was merged that is nearest to the trained model), certificate, of the
    chosen one parity_max_abs, parity_limit, parity_enforced, parity_against, largest_logit;
    kl_base, positions, items.

    Raises UsageError for evaluation data that does not fit, InputRefusedError for a base without
    a usable tokenizer, StepFailedError when the merged checkpoint misses parity.
    """
    base = Path(arguments["base"]["path"])
    # The tokenizer that ships: all merges carry the same one.
    shipped = next(iter(paths_of(arguments).values()))
    tokenizer = load_tokenizer(shipped)
    eos = eos_token_ids(shipped, tokenizer)
    job = _Job(arguments, out, progress, tokenizer, eos, context_length(base))
    given = _items_of_data(job)
    with deterministic(threads_for(base, int(arguments["threads"]))):
        items, rows, answers = with_model(
            lambda: _load_trained(job, "dequantized"),
            lambda model: _measure_trained(job, model, given),
        )
        with rows:
            alone = _measure_base_alone(job, items, rows)
            chosen, facts = _measure_merges(job, items, rows)
            progress("writing log-probabilities")
            to_log_probabilities(rows)
            reference = Reference(
                task_name=arguments["task"],
                source=DATA_SOURCE if given else OWN_SOURCE,
                seed=int(arguments["seed"]),
                items=items,
                items_in_data=len(given or items),
                positions_in_data=sum(item.positions for item in given or items),
                answers=answers,
                base=alone,
                eos_token_ids=eos,
                generation=generation_settings(shipped, tokenizer),
                tokenizer_cases=make_cases(tokenizer),
            )
            write_self_test(out / "self_test", reference, rows, load_task(arguments["task"]))
            positions = rows.rows
    return {
        **facts,
        "chosen": chosen,
        "kl_base": kl_base(reference),
        "positions": positions,
        "items": len(items),
    }


def _items_of_data(job: _Job) -> list[ScoredItem]:
    """The evaluation items as token ids; none where the recipe names no data."""
    path = job.arguments["evaluation"]
    if path is None:
        return []
    items = load_task(job.arguments["task"]).load_items(Path(path))
    return render_items(items, job.tokenizer, job.eos, job.context, job.progress)


def _measure_trained(
    job: _Job, model: Any, given: list[ScoredItem]
) -> tuple[tuple[ScoredItem, ...], RowFile, list[str | None]]:
    """The items scored, the trained model's logits on disk, and its answers."""
    seed = int(job.arguments["seed"])
    found = given or own_items(model, job.tokenizer, job.eos, job.context, seed, job.progress)
    items = select(found, most_positions(vocabulary_size(model)))
    rows = write_logits(model, items, job.out / _ROWS, "trained model", job.progress)
    return items, rows, job.answer(items, model, "trained model")


def _measure_base_alone(
    job: _Job, items: tuple[ScoredItem, ...], rows: RowFile
) -> BaseAlone | None:
    """The base alone; None for a full fine-tune whose base is not named."""
    from edgetune.checkpoint.trained import load_base_alone

    base, adapters = job.arguments["base"], job.arguments["adapters"]
    before = job.arguments["base_before"]
    if before is None and not adapters:
        return None

    def load() -> Any:
        if before is not None:
            return load_base_alone(Path(before), None, [], job.scratch)
        return load_base_alone(Path(base["path"]), base["trained_as"], adapters, job.scratch)

    job.progress("base alone: loading")
    return with_model(
        load,
        lambda model: measure_base(
            model, items, rows, lambda m, label: job.answer(items, m, label), job.progress
        ),
    )


def _measure_merges(
    job: _Job, items: tuple[ScoredItem, ...], rows: RowFile
) -> tuple[str, dict[str, Any]]:
    """(onto what the checkpoint was merged that is taken, the facts about it and the others).

    Raises StepFailedError when one of them misses parity.
    """
    import torch

    from edgetune.checkpoint.trained import load_plain

    def measured(onto: str, path: Path) -> Candidate:
        return measure_candidate(
            onto,
            lambda: load_plain(path, torch.float32, job.scratch),
            lambda: _load_trained(job, "original"),
            items,
            rows,
            job.out,
            job.progress,
        )

    dtype = str(job.arguments["merge_dtype"])
    candidates = [measured(onto, path) for onto, path in paths_of(job.arguments).items()]
    parities = [judge_parity(candidate, dtype) for candidate in candidates]
    chosen = choose(candidates)
    base = job.arguments["base"]
    four_bit = bool(base["trained_as"] or read_checkpoint(Path(base["path"])).packed)
    return chosen.onto, {
        **parities[candidates.index(chosen)],
        "certificate": certificate(candidates, chosen, four_bit),
    }


def _load_trained(job: _Job, onto: str) -> Any:
    from edgetune.checkpoint.trained import load_trained_model

    base, adapters = job.arguments["base"], job.arguments["adapters"]
    return load_trained_model(
        Path(base["path"]),
        base["trained_as"],
        adapters,
        onto=onto,
        scratch=job.scratch,
        combine=job.arguments.get("combine"),
    )
