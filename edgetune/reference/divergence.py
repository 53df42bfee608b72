"""Log-probabilities, and how far two models are apart, row by row.

Computed in float64 from float32 logits, so that what is stored as float32 is rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.reference.rows import RowFile

Floats = NDArray[np.float32]
# JSON and many readers know no infinity; a remainder of nothing is the smallest float32.
NO_MASS = float(np.finfo(np.float32).min)


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Log-probabilities [n, vocabulary] in nats."""
    return _array(torch.log_softmax(torch.from_numpy(logits).double(), -1))


def kl_rows(trained: Floats, other: Floats) -> NDArray[np.float64]:
    """KL(trained ‖ other) in nats for each row of logits [n, vocabulary]."""
    log_p = torch.log_softmax(torch.from_numpy(trained).double(), -1)
    log_q = torch.log_softmax(torch.from_numpy(other).double(), -1)
    # Rounding can leave a divergence of -1e-17, which has no meaning.
    return _array((log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0))


def pick(values: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[Any]:
    """values[row, ids[row]] for each row."""
    return np.take_along_axis(values, ids[:, None], 1)[:, 0]


def to_log_probabilities(rows: RowFile) -> None:
    """Replace logits by their float32 log-softmax, in place on disk."""
    for row, count in rows.blocks():
        rows.write(row, log_softmax(rows.read(row, count)).astype(np.float32))


def top_of_rows(rows: RowFile, target_ids: NDArray[np.int64], most: int) -> dict[str, NDArray[Any]]:
    """What a package carries of log-probabilities [positions, vocabulary]:

    top_ids int32 [positions, k] and top_logprobs float32 [positions, k] in descending order,
    equals by id; rest_logprob float32 [positions], the log of the mass outside; target_logprob
    float32 [positions].
    """
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("top_ids", "top_logprobs", "rest_logprob", "target_logprob")
    }
    k = min(most, rows.width)
    for row, count in rows.blocks():
        values = rows.read(row, count)
        found = torch.from_numpy(values).topk(k, -1)
        ids, logprobs = _array(found.indices), _array(found.values)
        order = np.lexsort((ids, -logprobs), axis=-1)
        ids = np.take_along_axis(ids, order, 1)
        logprobs = np.take_along_axis(logprobs, order, 1)
        rest = torch.from_numpy(values).double()
        rest.scatter_(-1, torch.from_numpy(ids), -torch.inf)
        mass = _array(torch.logsumexp(rest, -1))
        parts["top_ids"].append(ids.astype("<i4"))
        parts["top_logprobs"].append(logprobs.astype("<f4"))
        parts["rest_logprob"].append(np.maximum(mass, NO_MASS).astype("<f4"))
        parts["target_logprob"].append(pick(values, target_ids[row : row + count]).astype("<f4"))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.numpy()
    return array
