"""A self-test that does not hold together is refused, never half measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetune.errors import InputRefusedError
from edgetune.validate.self_test import load_self_test, open_logprobs
from tests.tiny_package import TOP_K, copy_of


@pytest.fixture
def folder(package: Path, tmp_path: Path) -> Path:
    return copy_of(package / "self_test", tmp_path / "self_test")


def _rewrite(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        np.save(folder / name, change(np.load(folder / name)))

    return apply


def _cut(name: str, keep: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return apply


def _item(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        lines = (folder / "items.jsonl").read_text().splitlines()
        row = {**json.loads(lines[0]), **changes}
        (folder / "items.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]))

    return apply


def _fact(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        facts = json.loads((folder / "self_test.json").read_text())
        (folder / "self_test.json").write_text(json.dumps({**facts, **changes}))

    return apply


def _set(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return change


def test_a_whole_self_test_is_read(folder: Path, package: Path) -> None:
    loaded = load_self_test(folder)
    positions = len(loaded.item_of)
    assert loaded.top_ids.shape == (positions, TOP_K)
    assert loaded.positions(0) == slice(0, len(loaded.items[0].target_ids))
    last = len(loaded.items) - 1
    assert loaded.positions(last).stop == positions
    assert loaded.base_kl is not None
    logprobs = open_logprobs(package.parent / "reference", loaded)
    assert logprobs.shape == (positions, loaded.vocabulary_size)


def test_a_base_that_means_nothing_may_be_absent(folder: Path) -> None:
    (folder / "base_kl.npy").unlink()
    assert load_self_test(folder).base_kl is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut("top_ids.npy", 200), r"top_ids\.npy: not a NumPy array file, or cut short"),
        (_cut("top_ids.npy", 0), r"top_ids\.npy: not a NumPy array file"),
        (_cut("self_test.json", 40), r"self_test\.json: not valid JSON"),
        (_cut("items.jsonl", 100), r"items\.jsonl: not the items"),
        (_cut("items.jsonl", 0), r"items\.jsonl: no items"),
        (_rewrite("base_kl.npy", lambda a: a[:-1]), r"base_kl\.npy: holds float32 \[\d+\], exp"),
        (_rewrite("top_ids.npy", lambda a: a.astype("i8")), r"top_ids\.npy: holds int64"),
        (_rewrite("target_logprob.npy", _set(np.nan)), r"target_logprob\.npy: holds a number that"),
        (_rewrite("rest_logprob.npy", _set(-np.inf)), r"rest_logprob\.npy: holds a number that"),
        (_rewrite("top_ids.npy", _set(9999)), r"top_ids\.npy: a token outside the vocabulary"),
        (_rewrite("top_logprobs.npy", _set(0.0)), r"top_logprobs\.npy: with their remainder"),
        (_rewrite("target_logprob.npy", lambda a: a - 1), r"items\.jsonl: its targets are not"),
        (_item(target_ids=[]), r"item 1 lacks tokens"),
        (_item(target_ids=[7]), r"with \d+ positions, self_test\.json says"),
        (_item(prompt_ids=[]), r"item 1 lacks tokens"),
        (_item(prompt_ids=[5000]), r"item 1 lacks tokens, or has one outside the vocabulary"),
        (_item(prompt_ids=[1.5]), r"tokens that are not whole numbers"),
        (_item(reference_answer_logprob=float("nan")), r"NaN is not a number"),
        (_fact(items=7), r"self_test\.json says 7"),
        (_fact(top_k=None), r"'top_k' is None, expected a whole number"),
        (lambda f: (f / "top_logprobs.npy").unlink(), r"top_logprobs\.npy: no such file"),
        (lambda f: (f / "items.jsonl").unlink(), r"items\.jsonl: no such file"),
        (lambda f: (f / "tokenizer_cases.json").write_text("[]"), r"cases\.json: not an object"),
    ],
)
def test_damage_is_refused_by_file(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(InputRefusedError, match=message):
        load_self_test(folder)


def test_a_pickled_array_is_never_run(folder: Path) -> None:
    np.save(folder / "base_kl.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputRefusedError, match=r"base_kl\.npy: not a NumPy array file"):
        load_self_test(folder)


def test_log_probabilities_of_another_reference_are_refused(folder: Path, tmp_path: Path) -> None:
    loaded = load_self_test(folder)
    np.save(tmp_path / "logprobs.npy", np.zeros((3, loaded.vocabulary_size), dtype=np.float32))
    with pytest.raises(InputRefusedError, match=r"logprobs\.npy: holds float32 \[3, 288\]"):
        open_logprobs(tmp_path, loaded)
