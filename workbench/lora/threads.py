"""`in_threads`: a few large native calls side by side, which hold no lock of Python meanwhile.

Reading an adapter is checks, hashes and copies of some hundred tensors; each is one call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_MOST = 8


def in_threads(function: Callable[[T], R], items: Iterable[T], num_bytes: int) -> list[R]:
    """Return function(item) of each item, in order, by threads if `num_bytes` are worth it.

    Raises what the first item to fail raises.
    """
    count = min(_MOST, os.cpu_count() or 1, num_bytes >> 22)
    if count < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(count, thread_name_prefix="adapter") as threads:
        return list(threads.map(function, items))
