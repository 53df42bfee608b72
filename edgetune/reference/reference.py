"""The reference step: what the trained model answers, and the merge's parity with it.

The trained model (base as the adapter saw it, adapters unmerged, float32) is loaded first, then
the base alone, then each merged checkpoint; one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.reference.divergence import to_log_probabilities
from edgetune.reference.long_context import measure_long_context, write_long_context
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
BUILTIN = "builtin"
# The folder that ships, unless the evaluation data is private: then the other one does.
SELF_TEST, SHIPPED_SELF_TEST = "self_test", "shipped_self_test"
_ROWS, _SHIPPED_ROWS = "logprobs.npy", "shipped_logprobs.npy"
_LONG_ROWS = "long_context_logprobs.npy"


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


@dataclass(frozen=True)
class _Measured:
    """A set of items, the trained model's logits on disk, and its answers."""

    source: str
    folder: str
    items: tuple[ScoredItem, ...]
    rows: RowFile
    answers: list[str | None]
    items_in_data: int
    positions_in_data: int
    # The stretches of `long_context`, and the trained model's logits there; of what ships alone.
    stretches: tuple[ScoredItem, ...] = ()
    long_rows: RowFile | None = None


def reference_step(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """Write `self_test/` and `logprobs.npy` (float32 [positions, vocabulary]) into `out`; with
    private evaluation data also `shipped_self_test/`, of the model's own and built-in text. The one
    that ships has a `long_context/` where the model's arithmetic changes with the length.

    Arguments: base {path, trained_as}, base_before, adapters [{path, weight}], combine,
    merge_dtype, checkpoints {onto what: merged folder}, task, evaluation (JSON lines or null),
    self_test_data (evaluation, or builtin: it is private), seed, long_context
    (`lengths.LongContext` in JSON, or none), threads, layered (the model does not fit the memory;
    changes no result). Facts: chosen (onto what the checkpoint was merged that
    is nearest to the trained model), certificate, of the chosen one parity_max_abs, parity_limit,
    parity_enforced, parity_against, largest_logit; kl_base, positions, items.

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
    private = bool(given) and arguments["self_test_data"] == BUILTIN
    with deterministic(threads_for(base, int(arguments["threads"]))), ExitStack() as stack:
        sets = with_model(
            lambda: _load_trained(job, "dequantized"),
            lambda model: _measure_trained(job, model, given, private),
        )
        for measured in sets:
            stack.enter_context(measured.rows)
            if measured.long_rows is not None:
                stack.enter_context(measured.long_rows)
        alone = _measure_base_alone(job, sets)
        main = sets[0]
        chosen, facts = _measure_merges(job, main.items, main.rows)
        progress("writing log-probabilities")
        cases, generation = make_cases(tokenizer), generation_settings(shipped, tokenizer)
        references = [
            Reference(
                task_name=arguments["task"],
                source=measured.source,
                seed=int(arguments["seed"]),
                items=measured.items,
                items_in_data=measured.items_in_data,
                positions_in_data=measured.positions_in_data,
                answers=measured.answers,
                base=base_alone,
                eos_token_ids=eos,
                generation=generation,
                tokenizer_cases=cases,
            )
            for measured, base_alone in zip(sets, alone, strict=True)
        ]
        for measured, reference in zip(sets, references, strict=True):
            to_log_probabilities(measured.rows)
            folder = out / measured.folder
            write_self_test(folder, reference, measured.rows, load_task(arguments["task"]))
        if lengths := arguments.get("long_context"):
            last = sets[-1]
            write_long_context(
                out / last.folder, lengths, references[-1], last.stretches, last.long_rows
            )
    # Only their top log-probabilities ship.
    for name in (_SHIPPED_ROWS, _LONG_ROWS):
        (out / name).unlink(missing_ok=True)
    divergence, positions = kl_base(references[0]), main.rows.rows
    return {
        **facts,
        "chosen": chosen,
        "kl_base": divergence,
        "positions": positions,
        "items": len(main.items),
    }


def _items_of_data(job: _Job) -> list[ScoredItem]:
    """The evaluation items as token ids; none where the recipe names no data."""
    path = job.arguments["evaluation"]
    if path is None:
        return []
    items = load_task(job.arguments["task"]).load_items(Path(path))
    return render_items(items, job.tokenizer, job.eos, job.context, job.progress)


def _measure_trained(
    job: _Job, model: Any, given: list[ScoredItem], private: bool
) -> list[_Measured]:
    """The evaluation items, or text of its own; where they are private, its own text as well. And
    what ships, made into long texts."""
    progress, label = job.progress, "trained model"

    def own() -> list[ScoredItem]:
        seed = int(job.arguments["seed"])
        return own_items(model, job.tokenizer, job.eos, job.context, seed, progress)

    def measured(found: list[ScoredItem], source: str, folder: str, rows: str) -> _Measured:
        items = select(found, most_positions(vocabulary_size(model)))
        logits = write_logits(model, items, job.out / rows, label, progress)
        answers = job.answer(items, model, label)
        total = sum(item.positions for item in found)
        return _Measured(source, folder, items, logits, answers, len(found), total)

    source = DATA_SOURCE if given else OWN_SOURCE
    sets = [measured(given or own(), source, SELF_TEST, _ROWS)]
    if private:
        sets.append(measured(own(), OWN_SOURCE, SHIPPED_SELF_TEST, _SHIPPED_ROWS))
    if lengths := job.arguments.get("long_context"):
        # Of the items that ship: a package carries no private text, however it is cut.
        shipped, place = sets[-1], job.out / _LONG_ROWS
        found = measure_long_context(model, lengths, shipped.items, place, progress)
        sets[-1] = replace(shipped, stretches=found[0], long_rows=found[1])
    return sets


def _measure_base_alone(job: _Job, sets: list[_Measured]) -> list[BaseAlone | None]:
    """The base alone on each set; None for a full fine-tune whose base is not named."""
    from edgetune.checkpoint.trained import load_base_alone

    base, adapters = job.arguments["base"], job.arguments["adapters"]
    before = job.arguments["base_before"]
    if before is None and not adapters:
        return [None] * len(sets)

    def load() -> Any:
        if before is not None:
            return load_base_alone(Path(before), None, [], job.scratch)
        return load_base_alone(Path(base["path"]), base["trained_as"], adapters, job.scratch)

    def measure(model: Any, of: _Measured) -> BaseAlone:
        def answer(asked: Any, label: str) -> list[str | None]:
            return job.answer(of.items, asked, label)

        return measure_base(model, of.items, of.rows, answer, job.progress)

    job.progress("base alone: loading")
    return with_model(load, lambda model: [measure(model, of) for of in sets])


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
