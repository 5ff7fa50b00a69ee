"""`Trace`: an engine's events with their times, in memory or in a file.

Views are built from a trace alone, so what works live works on a recorded file. It subscribes to an
engine's bus and never touches the engine otherwise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from workbench.describe import Described
from workbench.engine import Engine
from workbench.events import Event, StepDone, StepPlanned
from workbench.trace import file, perfetto

E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class TracedEvent:
    """An event and when it arrived, in seconds from the start of the trace."""

    seconds: float
    event: Event


class Trace(Described):
    """A list of events with a header that says where they came from."""

    def __init__(self, header: dict[str, Any] | None = None) -> None:
        self.header: dict[str, Any] = header or {}
        self.entries: list[TracedEvent] = []
        self._start = time.perf_counter()

    @classmethod
    @contextmanager
    def record(cls, engine: Engine) -> Iterator[Trace]:
        """Record everything the engine states while the block runs; the trace stays afterwards."""
        trace = cls(engine_header(engine))
        unsubscribe = engine.bus.subscribe(trace)
        try:
            yield trace
        finally:
            unsubscribe()

    def __call__(self, event: Event) -> None:
        """Take one event: a trace is a subscriber."""
        self.entries.append(TracedEvent(time.perf_counter() - self._start, event))

    def __len__(self) -> int:
        """Number of events."""
        return len(self.entries)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind, in order."""
        return [entry.event for entry in self.entries if isinstance(entry.event, kind)]

    def save(self, path: str | Path) -> Path:
        """Write the trace to a file (gzipped JSON lines) and return its path."""
        return file.write(Path(path), self.header, [(e.seconds, e.event) for e in self.entries])

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace; `TraceError` if it is truncated, foreign or of another version."""
        header, entries = file.read(Path(path))
        trace = cls(header)
        trace.entries = [TracedEvent(seconds, event) for seconds, event in entries]
        return trace

    def to_perfetto(self, path: str | Path) -> Path:
        """Write a Chrome trace (JSON) for ui.perfetto.dev: step parts, batch sizes, requests."""
        return perfetto.write(Path(path), self.header, [(e.seconds, e.event) for e in self.entries])

    def describe(self) -> dict[str, Any]:
        """Return the trace in numbers."""
        kinds = Counter(type(entry.event).__name__ for entry in self.entries)
        done = self.of(StepDone)
        return {
            "events": len(self),
            "steps": len(done),
            "tokens in": sum(sum(row[2] for row in plan.rows) for plan in self.of(StepPlanned)),
            "tokens out": sum(len(step.tokens) for step in done),
            "seconds": round(self.entries[-1].seconds, 3) if self.entries else 0,
            "kinds": ", ".join(f"{name} {count}" for name, count in kinds.most_common()),
        }


def engine_header(engine: Engine) -> dict[str, Any]:
    """Return what a reader needs to know of the engine behind a trace."""
    engine.require_open()
    return {
        "model": engine.model.config.architecture,
        "device": str(engine.runner.device),
        "backend": engine.runner.backend.name,
        "num_blocks": engine.cache.num_blocks,
        "block_size": engine.cache.block_size,
        "max_batch_tokens": engine.scheduler.config.max_batch_tokens,
        "max_sequences": engine.scheduler.config.max_sequences,
        "started": time.time(),
    }
