"""Recording a pass into a CUDA graph, after a run that compiles and allocates.

Used by `workbench.run.graphs`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor


def capture(
    run: Callable[[], Tensor], device: torch.device, pool: Any
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Run once, then capture; return the graph and where its replays leave the result.

    pool: whose memory the graph takes, of `torch.cuda.graph_pool_handle`. Raises what `run` does,
    and `RuntimeError` where it cannot be captured.
    """
    graph, (stream, lock) = torch.cuda.CUDAGraph(), _capture_stream(device)
    with torch.cuda.device(device), lock:
        current = torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            stream.wait_stream(current)
            run()
            stream.synchronize()
            # Another engine's thread may go on allocating meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = run()
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
