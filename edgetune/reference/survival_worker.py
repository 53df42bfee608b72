"""One module quantized, all others in float32: what its quantization alone costs, in torch.

`python -m edgetune.reference.survival_worker` speaks JSON lines. First line in: {"checkpoint" (the
merged folder), "graph" (the folder of the graph that ships), "reference" (the reference step's
folder), "modules" (how many will be asked for), "threads"}; it answers {"ready": true, "items",
"positions": [of each item], "base_kl": [nats, sum of each item] or null}. Each {"module": name} is
answered by {"kl": [KL(trained ‖ model with this module quantized), nats, sum of each item]}, or
{"kl": null} for a module that the graph does not hold. {"stop": true} or the end of input ends it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.answering import answer_requests, requests, tell
from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checkpoint.graph_weights import pieces_of, read_matrices, whole_weight
from edgetune.reference.divergence import kl_rows
from edgetune.reference.measure import deterministic, threads_for
from edgetune.reference.render import ScoredItem
from edgetune.reference.scoring import score_items

# What all passes over all modules may take together: about ten minutes of two slow cores.
_MOST_OPERATIONS = 3e13
_FEWEST_ITEMS = 8


@dataclass(frozen=True)
class Scored:
    """Some items, and the rows of the reference's arrays that are theirs."""

    items: tuple[ScoredItem, ...]
    rows: tuple[slice, ...]


def read_items(reference: Path) -> list[ScoredItem]:
    """The items that the reference step scored, from its `self_test/`."""
    lines = (reference / "self_test" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        ScoredItem(
            id=str(row["id"]),
            prompt_ids=tuple(row["prompt_ids"]),
            target_ids=tuple(row["target_ids"]),
            prompt_text="",
            answer=None,
        )
        for row in map(json.loads, lines)
    ]


def choose_items(items: Sequence[ScoredItem], parameters: int, modules: int) -> Scored:
    """As many items as the operations allow, spread evenly: the same ones on every machine."""
    lengths = [len(item.prompt_ids) + item.positions for item in items]
    a_pass = 2.0 * parameters * sum(lengths) / len(items)
    most = max(_FEWEST_ITEMS, int(_MOST_OPERATIONS / (a_pass * max(1, modules))))
    count = min(most, len(items))
    ends = np.cumsum([item.positions for item in items])
    chosen = [number * len(items) // count for number in range(count)]
    rows = tuple(slice(int(ends[n]) - items[n].positions, int(ends[n])) for n in chosen)
    return Scored(tuple(items[n] for n in chosen), rows)


def kl_of_items(model: Any, scored: Scored, trained: NDArray[np.float32]) -> list[float]:
    """KL(trained ‖ model) summed over each item's positions, in nats; `trained` log-probabilities
    of all positions."""
    own = np.repeat(np.arange(len(scored.items)), [item.positions for item in scored.items])
    place = np.concatenate([np.arange(rows.start, rows.stop) for rows in scored.rows])
    sums = np.zeros(len(scored.items))
    for row, logits in score_items(model, scored.items, "one module", lambda _: None):
        part = slice(row, row + logits.shape[0])
        kl = kl_rows(np.asarray(trained[place[part]]), logits.numpy())
        np.add.at(sums, own[part], kl)
    return [float(value) for value in sums]


def with_weight(module: Any, weight: torch.Tensor, use: Callable[[], list[float]]) -> list[float]:
    """`use()` while the module has another weight."""
    before = module.weight.data
    module.weight.data = weight
    try:
        return use()
    finally:
        module.weight.data = before


def serve(source: TextIO, sink: TextIO) -> None:
    """Answer requests until {"stop": true} or the end of input. Raises what goes wrong."""
    from edgetune.checkpoint.trained import load_plain

    start = json.loads(source.readline())
    checkpoint, reference = Path(start["checkpoint"]), Path(start["reference"])
    merged = read_checkpoint(checkpoint)
    shapes = {n.removesuffix(".weight"): e.shape for n, e in merged.tensors.items()}
    matrices = read_matrices(Path(start["graph"]))
    model = load_plain(checkpoint, torch.float32)
    trained = np.load(reference / "logprobs.npy", mmap_mode="r", allow_pickle=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scored = choose_items(read_items(reference), parameters, int(start["modules"]))
    base = reference / "self_test" / "base_kl.npy"
    base_kl = np.load(base, allow_pickle=False) if base.is_file() else None
    with deterministic(threads_for(checkpoint, int(start["threads"]))):
        tell(
            sink,
            {
                "ready": True,
                "items": len(scored.items),
                "positions": [item.positions for item in scored.items],
                "base_kl": None
                if base_kl is None
                else [float(base_kl[rows].sum(dtype=np.float64)) for rows in scored.rows],
            },
        )
        for request in requests(source):
            name = str(request["module"])
            pieces = pieces_of(name, shapes, matrices) if name in shapes else []
            if not pieces:
                tell(sink, {"kl": None})
                continue
            kl = with_weight(
                model.get_submodule(name),
                whole_weight(pieces),
                lambda: kl_of_items(model, scored, trained),
            )
            tell(sink, {"kl": kl})


if __name__ == "__main__":
    sys.exit(answer_requests(serve, "the modules one by one"))
