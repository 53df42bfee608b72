"""The reference that travels in a package, read and checked.

Checksums prove that the files are the ones that were packed; here it is proved that they fit each
other, so that a truncated or mixed-up self-test is refused and never half measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.errors import InputRefusedError
from edgetune.files import read_json

_AGAIN = "build the package again, or copy it again from where it came from"


@dataclass(frozen=True)
class Item:
    """One stretch of scored text, with what the reference made of it."""

    id: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    prompt_text: str
    answer: str | None
    reference_answer: str | None
    base_answer: str | None
    reference_exact: bool | None
    base_exact: bool | None
    reference_answer_logprob: float
    base_answer_logprob: float | None


@dataclass(frozen=True)
class SelfTest:
    """`self_test/` of a package: N items, P scored positions in item order, top-k of each."""

    facts: Mapping[str, Any]
    items: tuple[Item, ...]
    # [P] item of each position
    item_of: npt.NDArray[np.int64]
    # [P, K] int, [P, K] and [P] float32, in nats
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]
    rest_logprob: npt.NDArray[np.float32]
    target_logprob: npt.NDArray[np.float32]
    # [P] KL(trained ‖ base alone); null where it has no meaning
    base_kl: npt.NDArray[np.float32] | None
    tokenizer_cases: Mapping[str, Any]

    @property
    def vocabulary_size(self) -> int:
        """Width of the reference's logits."""
        return int(self.facts["vocabulary_size"])

    def positions(self, item: int) -> slice:
        """Where an item's positions lie."""
        first = int(np.searchsorted(self.item_of, item))
        return slice(first, first + len(self.items[item].target_ids))


def load_self_test(folder: Path) -> SelfTest:
    """Read `self_test/`. Raises InputRefusedError naming the file that is missing or unfit."""
    facts = _mapping(folder / "self_test.json")
    count, width = (_number(facts, key, folder) for key in ("positions", "top_k"))
    items = _load_items(folder / "items.jsonl", _number(facts, "vocabulary_size", folder))
    lengths = [len(item.target_ids) for item in items]
    if len(items) != _number(facts, "items", folder) or sum(lengths) != count:
        msg = f"{folder}: {len(items)} items with {sum(lengths)} positions, self_test.json says "
        msg += f"{facts['items']} with {count}"
        raise InputRefusedError(msg, _AGAIN)
    base = folder / "base_kl.npy"
    loaded = SelfTest(
        facts=facts,
        items=items,
        item_of=np.repeat(np.arange(len(items)), lengths),
        top_ids=_array(folder / "top_ids.npy", np.int32, (count, width)).astype(np.int64),
        top_logprobs=_array(folder / "top_logprobs.npy", np.float32, (count, width)),
        rest_logprob=_array(folder / "rest_logprob.npy", np.float32, (count,)),
        target_logprob=_array(folder / "target_logprob.npy", np.float32, (count,)),
        base_kl=_array(base, np.float32, (count,)) if base.is_file() else None,
        tokenizer_cases=_mapping(folder / "tokenizer_cases.json"),
    )
    _check_values(loaded, folder)
    return loaded


def take_items(
    self_test: SelfTest, numbers: Sequence[int]
) -> tuple[SelfTest, npt.NDArray[np.int64]]:
    """The self-test of some of its items, in the order given, and the positions [P'] it keeps."""
    wheres = [self_test.positions(number) for number in numbers]
    kept = np.concatenate([np.arange(where.start, where.stop) for where in wheres])
    items = tuple(self_test.items[number] for number in numbers)
    taken = SelfTest(
        facts=self_test.facts,
        items=items,
        item_of=np.repeat(np.arange(len(items)), [len(item.target_ids) for item in items]),
        top_ids=self_test.top_ids[kept],
        top_logprobs=self_test.top_logprobs[kept],
        rest_logprob=self_test.rest_logprob[kept],
        target_logprob=self_test.target_logprob[kept],
        base_kl=None if self_test.base_kl is None else self_test.base_kl[kept],
        tokenizer_cases=self_test.tokenizer_cases,
    )
    return taken, kept


def open_logprobs(reference: Path, self_test: SelfTest) -> npt.NDArray[np.float32]:
    """The reference step's `logprobs.npy` [P, V], mapped, not read.

    Raises InputRefusedError when it does not fit the self-test.
    """
    shape = (len(self_test.item_of), self_test.vocabulary_size)
    return _array(reference / "logprobs.npy", np.float32, shape, mapped=True)


def _check_values(loaded: SelfTest, folder: Path) -> None:
    if ((loaded.top_ids < 0) | (loaded.top_ids >= loaded.vocabulary_size)).any():
        msg = f"{folder / 'top_ids.npy'}: a token outside the vocabulary"
        raise InputRefusedError(msg, _AGAIN)
    targets = np.array([t for item in loaded.items for t in item.target_ids], dtype=np.int64)
    mass = np.exp(loaded.top_logprobs.astype(np.float64)).sum(axis=1)
    mass += np.exp(loaded.rest_logprob.astype(np.float64))
    if np.abs(mass - 1).max() > 1e-3:
        msg = f"{folder / 'top_logprobs.npy'}: with their remainder they do not sum to one"
        raise InputRefusedError(msg, _AGAIN)
    # A target among the top k has its log-probability in two files: items and arrays belong
    # together only if they agree.
    row, column = np.nonzero(loaded.top_ids == targets[:, None])
    gap = np.abs(loaded.top_logprobs[row, column] - loaded.target_logprob[row])
    if gap.size and gap.max() > 1e-4:
        msg = f"{folder / 'items.jsonl'}: its targets are not those of target_logprob.npy"
        raise InputRefusedError(msg, _AGAIN)


def _array(
    path: Path, dtype: type, shape: tuple[int, ...], mapped: bool = False
) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as why:
        msg = f"{path}: no such file"
        raise InputRefusedError(msg, _AGAIN) from why
    except (ValueError, OSError, EOFError) as why:
        msg = f"{path}: not a NumPy array file, or cut short"
        raise InputRefusedError(msg, _AGAIN) from why
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        found = f"{getattr(array, 'dtype', '?')} {list(getattr(array, 'shape', ()))}"
        msg = f"{path}: holds {found}, expected {np.dtype(dtype).name} {list(shape)}"
        raise InputRefusedError(msg, _AGAIN)
    if not mapped and not np.isfinite(array).all():
        msg = f"{path}: holds a number that is not finite"
        raise InputRefusedError(msg, _AGAIN)
    return array


def _load_items(path: Path, vocabulary: int) -> tuple[Item, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line, parse_constant=_no_constant) for line in lines if line.strip()]
        items = tuple(_item(row) for row in rows)
    except FileNotFoundError as why:
        msg = f"{path}: no such file"
        raise InputRefusedError(msg, _AGAIN) from why
    except (ValueError, TypeError, KeyError) as why:
        msg = f"{path}: not the items of a self-test ({why})"
        raise InputRefusedError(msg, _AGAIN) from why
    if not items:
        msg = f"{path}: no items"
        raise InputRefusedError(msg, _AGAIN)
    for item in items:
        ids = item.prompt_ids + item.target_ids
        if not item.prompt_ids or not item.target_ids or not 0 <= min(ids) <= max(ids) < vocabulary:
            msg = f"{path}: item {item.id} lacks tokens, or has one outside the vocabulary"
            raise InputRefusedError(msg, _AGAIN)
    return items


def _item(row: Mapping[str, Any]) -> Item:
    return Item(
        id=str(row["id"]),
        prompt_ids=_tokens(row["prompt_ids"]),
        target_ids=_tokens(row["target_ids"]),
        prompt_text=str(row.get("prompt_text") or ""),
        answer=row.get("answer"),
        reference_answer=row.get("reference_answer"),
        base_answer=row.get("base_answer"),
        reference_exact=row.get("reference_exact"),
        base_exact=row.get("base_exact"),
        reference_answer_logprob=float(row["reference_answer_logprob"]),
        base_answer_logprob=_optional(row.get("base_answer_logprob")),
    )


def _tokens(value: Sequence[Any]) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        msg = "tokens that are not whole numbers"
        raise ValueError(msg)
    return tuple(value)


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _no_constant(text: str) -> float:
    msg = f"{text} is not a number"
    raise ValueError(msg)


def _mapping(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if isinstance(value, Mapping):
        return value
    msg = f"{path}: not an object"
    raise InputRefusedError(msg, _AGAIN)


def _number(facts: Mapping[str, Any], key: str, folder: Path) -> int:
    value = facts.get(key)
    if type(value) is int and value > 0:
        return value
    msg = f"{folder / 'self_test.json'}: {key!r} is {value!r}, expected a whole number above 0"
    raise InputRefusedError(msg, _AGAIN)
