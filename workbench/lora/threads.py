"""`in_threads`: a few large native calls side by side, which hold no lock of Python meanwhile.

Reading an adapter is checks, hashes and copies of some hundred tensors; each is one call.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_MOST = 8
_TURN = 2e-4
_turns, _lock = [0, sys.getswitchinterval()], threading.Lock()


def in_threads(function: Callable[[T], R], items: Iterable[T], num_bytes: int) -> list[R]:
    """Return function(item) of each item, in order, by threads if `num_bytes` are worth it.

    Raises what an item that fails raises.
    """
    given = list(items)
    count = min(_MOST, os.cpu_count() or 1, num_bytes >> 22, len(given))
    if count < 2:
        return [function(item) for item in given]
    found: list[R] = [None] * len(given)  # type: ignore[list-item]

    def run(first: int) -> None:
        for place in range(first, len(given), count):
            found[place] = function(given[place])

    # One task a thread: handing some hundred over takes longer, in Python, than they do.
    with ThreadPoolExecutor(count, thread_name_prefix="adapter") as threads:
        for task in [threads.submit(run, first) for first in range(count)]:
            task.result()
    return found


@contextmanager
def in_the_background() -> Iterator[None]:
    """Let other threads, such as an engine's, have Python's lock after 0.2 ms of waiting.

    A step lets go of it some hundred times, and gets it back from a thread that computes in Python
    after 5 ms otherwise: those steps took 80 ms in place of 5.
    """
    with _lock:
        if not _turns[0]:
            _turns[1] = sys.getswitchinterval()
            sys.setswitchinterval(_TURN)
        _turns[0] += 1
    try:
        yield
    finally:
        with _lock:
            _turns[0] -= 1
            if not _turns[0]:
                sys.setswitchinterval(_turns[1])
