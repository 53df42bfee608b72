"""Torch on one thread, and several such threads side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from edgetune.host import usable_cores

_MOST_THREADS = 8
Given = TypeVar("Given")
Made = TypeVar("Made")


@contextmanager
def one_thread() -> Iterator[None]:
    """While the block runs torch has one thread. On blocks that fit the cache several wait for each
    other longer than they work (measured: five to seven times the processor's time, and more on a
    busy machine), and their sums depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    function: Callable[[Given], Made], given: Iterable[Given], most: int = _MOST_THREADS
) -> Iterator[Made]:
    """`function` of each, in order, several at a time, each on one thread of torch: what comes out
    does not depend on how many cores there are. `most`: results that may wait in memory."""
    threads = max(1, min(usable_cores(), most, _MOST_THREADS))

    def alone(one: Given) -> Made:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return function(one)

    with one_thread(), ThreadPoolExecutor(threads) as pool:
        running: deque[Future[Made]] = deque()
        try:
            for one in given:
                if len(running) == threads:
                    yield running.popleft().result()
                running.append(pool.submit(alone, one))
            while running:
                yield running.popleft().result()
        finally:
            for left in running:
                left.cancel()
