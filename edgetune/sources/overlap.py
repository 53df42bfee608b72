"""Which texts of two data files are the same, or nearly.

Texts are compared after normalization: NFKC, case folded, what is neither letter nor digit a single
space. Near is a weighted Jaccard similarity of character 5-grams of at least 0.9. A 5-gram weighs
log((N + 1) / df), N texts of which df hold it: a shared instruction or template is no likeness, the
words and numbers put into it are. At 0.8, the threshold of Lee et al. 2022 (Deduplicating Training
Data Makes Language Models Better), a sentence with one of four such words changed counts as the
same; for rows that are refused that is too little, since its answer changes too.

Each text is kept as the 256 of its 5-grams that come first by an exponential clock of that weight
(bottom-k sampling: Cohen & Kaplan 2007, Summarizing data using bottom-k sketches), which is all of
a short text and a fair sample of a long one: memory is a few kilobytes a text. Hashes are fixed, so
the same files give the same answer. A short text inside a long one is not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ALIKE = 0.9
_WIDTH = 5
_KEPT = 256
# Of those, the first ones choose which pairs are compared: a pair that is 0.9 alike shares about
# 29 of 32, and fewer than half practically never.
_FIRST = 32
# For each text, the most promising others are compared.
_MOST_COMPARED = 20
# Counts of texts by 5-gram, 16 MB; those that share a bucket weigh a little less.
_BUCKETS = 1 << 22
_IN_BUCKET = np.uint64(_BUCKETS - 1)
_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Match:
    """A text that is in the other file too: the lines of both, and how alike they are (1: the
    same after normalization)."""

    line: int
    other_line: int
    likeness: float


@dataclass(frozen=True)
class _Sketch:
    """The sampled 5-grams of a text, sorted by hash, with weight and clock time of each."""

    hashes: Hashes
    weights: npt.NDArray[np.float64]
    times: npt.NDArray[np.float64]
    # Before this time the sample is all there is; infinite for a short text.
    until: float


def normalize(text: str) -> str:
    """Text as it is compared.

    >>> normalize("Ｔurn  ON the light!")
    'turn on the light'
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    plain = re.sub(r"[\W_]+", " ", folded).strip()
    # Text of punctuation alone is compared as it stands.
    return plain or " ".join(folded.split())


def matches(texts: Mapping[int, str], others: Mapping[int, str]) -> list[Match]:
    """Texts {line: text} that are among the others, or nearly: one match each, the closest."""
    mine, theirs = _normalized(texts), _normalized(others)
    exact: dict[str, int] = {}
    for line, text in theirs.items():
        exact.setdefault(text, line)
    found = [Match(line, exact[text], 1.0) for line, text in mine.items() if text in exact]
    rest = {line: text for line, text in mine.items() if text not in exact}
    sketches = _sketches([*rest.values(), *exact])
    found += _near(list(rest), sketches[: len(rest)], list(exact.values()), sketches[len(rest) :])
    return sorted(found, key=lambda match: match.line)


def repeats(texts: Mapping[int, str]) -> list[Match]:
    """Texts {line: text} that repeat an earlier one of the same file, or nearly."""
    mine = _normalized(texts)
    first: dict[str, int] = {}
    found = []
    for line, text in mine.items():
        if text in first:
            found.append(Match(line, first[text], 1.0))
        else:
            first[text] = line
    lines, sketches = list(first.values()), _sketches(list(first))
    found += _near(lines, sketches, lines, sketches, earlier=True)
    return sorted(found, key=lambda match: match.line)


def _normalized(texts: Mapping[int, str]) -> dict[int, str]:
    return {line: normalize(text) for line, text in sorted(texts.items())}


def _near(
    lines: Sequence[int],
    sketches: Sequence[_Sketch],
    other_lines: Sequence[int],
    others: Sequence[_Sketch],
    earlier: bool = False,
) -> Iterator[Match]:
    """The closest near match of each sketch, if any; `earlier`: among those before it."""
    if not sketches or not others:
        return
    index = _Index([_first(sketch) for sketch in others])
    for number, sketch in enumerate(sketches):
        best, best_other = 0.0, -1
        for other in index.promising(_first(sketch), number if earlier else len(others)):
            likeness = _likeness(sketch, others[other])
            if likeness > best:
                best, best_other = likeness, other
        if best >= ALIKE:
            yield Match(lines[number], other_lines[best_other], min(best, 0.9999))


class _Index:
    """Which texts hold a 5-gram among their first ones."""

    def __init__(self, firsts: Sequence[Hashes]) -> None:
        self._sizes = np.array([len(first) for first in firsts])
        hashes = np.concatenate(firsts)
        owners = np.repeat(np.arange(len(firsts)), self._sizes)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]

    def promising(self, first: Hashes, before: int) -> list[int]:
        """Texts (numbers below `before`) that share at least half, the most shared first."""
        starts = np.searchsorted(self._hashes, first, "left")
        ends = np.searchsorted(self._hashes, first, "right")
        spans = [self._owners[a:b] for a, b in zip(starts, ends, strict=True) if b > a]
        if not spans:
            return []
        shared = np.bincount(np.concatenate(spans), minlength=len(self._sizes))[:before]
        enough = np.minimum(self._sizes[:before], len(first)) / 2
        chosen = np.flatnonzero((shared >= enough) & (shared > 0))
        order = np.argsort(-shared[chosen], kind="stable")[:_MOST_COMPARED]
        return [int(number) for number in chosen[order]]


def _first(sketch: _Sketch) -> Hashes:
    order = np.argsort(sketch.times, kind="stable")[:_FIRST]
    return sketch.hashes[order]


def _likeness(one: _Sketch, other: _Sketch) -> float:
    """Weighted Jaccard similarity; over the sample that both have, where one is longer."""
    until = min(one.until, other.until)
    _, here, _ = np.intersect1d(one.hashes, other.hashes, assume_unique=True, return_indices=True)
    if np.isinf(until):
        common = one.weights[here].sum()
        return float(common / (one.weights.sum() + other.weights.sum() - common))
    # Up to its end the clock drew each 5-gram of the union by its weight: plain counts estimate
    # the weighted share.
    counts = [int((sketch.times < until).sum()) for sketch in (one, other)]
    common = int((one.times[here] < until).sum())
    return common / max(sum(counts) - common, 1)


def _sketches(texts: Sequence[str]) -> list[_Sketch]:
    """A sketch of each text; weights are counted over all of them."""
    counts = np.zeros(_BUCKETS, dtype=np.uint32)
    # Short texts are kept whole, long ones are hashed a second time: memory is bounded.
    short: list[Hashes | None] = []
    for text in texts:
        hashes = _hashes(text)
        # Two 5-grams of a text in one bucket (rare) are counted once.
        counts[(hashes & _IN_BUCKET).astype(np.intp)] += 1
        short.append(hashes if len(hashes) <= _KEPT else None)
    return [
        _sketch(_hashes(text) if hashes is None else hashes, counts, len(texts))
        for text, hashes in zip(texts, short, strict=True)
    ]


def _sketch(hashes: Hashes, counts: npt.NDArray[np.uint32], total: int) -> _Sketch:
    weights = np.log((total + 1) / counts[(hashes & _IN_BUCKET).astype(np.intp)])
    # A uniform number in (0, 1) that the hash alone decides; -log of it is exponential.
    uniform = ((_mixed(hashes) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    times = -np.log(uniform) / weights
    until = np.inf
    if len(hashes) > _KEPT:
        order = np.argsort(times, kind="stable")
        until = float(times[order[_KEPT]])
        kept = np.sort(order[:_KEPT])
        hashes, weights, times = hashes[kept], weights[kept], times[kept]
    return _Sketch(hashes, weights, times, until)


def _hashes(text: str) -> Hashes:
    """The distinct 5-grams of a text (of a shorter one, itself), hashed, sorted."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    width = min(_WIDTH, len(points))
    count = len(points) - width + 1
    value = np.zeros(count, dtype=np.uint64)
    for place in range(width):
        value = value * _BASE + points[place : place + count] + np.uint64(1)
    mixed = np.sort(_mixed(value))
    distinct: Hashes = mixed[np.concatenate(([True], mixed[1:] != mixed[:-1]))]
    return distinct


def _mixed(values: Hashes) -> Hashes:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014)."""
    mixed = values + _BASE
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Hashes = mixed ^ (mixed >> np.uint64(31))
    return result
