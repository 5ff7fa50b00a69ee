"""`captured`: a computation on a GPU as a CUDA graph, beside whatever else the process does there.

Used by `workbench.run.graphs` for passes of the model, and by proposers for passes of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def captured(
    compute: Callable[[], Result], device: torch.device, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Run `compute` once, so that all is compiled and allocated, then capture it.

    Returns the graph and what the captured run returned: where replays leave their results. pool:
    shared by graphs that are never replayed at once. Raises what `compute` does, and `RuntimeError`
    for what cannot be captured.
    """
    graph, (stream, lock) = torch.cuda.CUDAGraph(), _capture_stream(device)
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        with lock, torch.cuda.stream(stream):
            stream.wait_stream(current)
            compute()
            stream.synchronize()
            # Another engine's thread may go on allocating meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = compute()
            except BaseException:
                with suppress(RuntimeError):  # the capture's failure is the one to tell
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(stream)
    return graph, result


@cache
def _capture_stream(device: torch.device) -> tuple[torch.cuda.Stream, threading.Lock]:
    """Return the stream of all captures on a device, and a lock, as engines may have threads.

    One for all, because cuBLAS keeps a workspace for each stream that it has seen.
    """
    return torch.cuda.Stream(device), threading.Lock()  # type: ignore[no-untyped-call]
