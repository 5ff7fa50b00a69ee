"""`Mover`: adapters go from host memory to their rank rows while passes run.

A thread writes them, on a stream of its own that waits for the passes queued so far, as these may
read what the rows held before. The engine's thread gives the rows out and looks between two steps
what has come; nobody reads a row before that. Called by `DeviceSlots`.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch

from workbench.lora.pool import Place, RankPool, Resident
from workbench.lora.threads import in_the_background


class Move(NamedTuple):
    """An adapter on its way: `arrival` holds where it is then, and the seconds that writing took.

    source: the tier it comes from. cause: why, as `AdapterMoved` has it.
    """

    place: Place
    source: str
    cause: str
    arrival: Future[tuple[Resident, float]]


@dataclass(slots=True)
class MoveTotals:
    """What was brought to the device so far. seconds: that writing took; held_up: that the engine's
    thread gave to it, in which no step could be planned."""

    count: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    held_up: float = 0.0

    @property
    def overlap(self) -> float:
        """The share of the writing that went on beside steps."""
        return 1 - min(self.held_up / self.seconds, 1) if self.seconds else 0.0


class Mover:
    """Writes to the rows of one pool."""

    def __init__(self, pool: RankPool) -> None:
        self.pool, self.totals = pool, MoveTotals()
        self._threads: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None

    def start(self, place: Place, source: str, cause: str) -> Move:
        """Begin to write an adapter to its place."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="adapters to the device")
        ready = None
        device = self.pool.model.device
        if device.type == "cuda":
            if self._stream is None:
                self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            ready = torch.cuda.current_stream(device).record_event()
        return Move(place, source, cause, self._threads.submit(self._write, place, ready))

    def _write(self, place: Place, ready: torch.cuda.Event | None) -> tuple[Resident, float]:
        begin = time.perf_counter()
        if self._stream is None or ready is None:
            return self.pool.write(place), time.perf_counter() - begin
        with in_the_background(), torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            resident = self.pool.write(place)
            self._stream.record_event().synchronize()
        return resident, time.perf_counter() - begin

    def close(self) -> None:
        """Let what is on its way arrive, and end the thread."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
        del self.pool
