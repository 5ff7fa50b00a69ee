"""`Trace`: an engine's events with their times, in memory or in a file.

Views are built from a trace alone, so what works live works on a recorded file. It subscribes to an
engine's bus and never touches the engine otherwise.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from workbench.config import require_positive
from workbench.describe import Described
from workbench.engine import Engine
from workbench.errors import MissingExtra
from workbench.events import Event, StepDone, StepPlanned
from workbench.models.tokenizer import Tokenizer
from workbench.trace import file, perfetto
from workbench.trace.apply import apply
from workbench.trace.keyframe import store
from workbench.trace.layout import CacheLayout
from workbench.trace.live import live_state
from workbench.trace.log import EventLog, field_names
from workbench.trace.occurring import token_ids
from workbench.trace.replay import ReplayedStep, Timeline, replay
from workbench.trace.state import ReplayedState
from workbench.trace.tokens import SequenceLog, sequence_logs

E = TypeVar("E", bound=Event)


class Trace(Described):
    """Events in order, with a header that says where they came from.

    seconds[i]: when `events[i]` arrived, from the start of the trace. tokenizer: of the engine that
    was recorded; a file brings the text of the tokens that occur in it instead. num_shortened: how
    often its older half became one event; whoever reads by place begins anew then.
    """

    def __init__(self, header: dict[str, Any] | None = None) -> None:
        self.header: dict[str, Any] = header or {}
        self.events = EventLog()
        self.seconds = array("d")
        self.tokenizer: Tokenizer | None = None
        self._start = time.perf_counter()
        self._timeline: Timeline | None = None
        self._max_events: int | None = None
        self.num_shortened = 0
        self._reading = threading.RLock()

    @classmethod
    def begin(cls, engine: Engine, *, max_events: int | None = None) -> Trace:
        """Return a trace of an engine, between two steps, that is not subscribed to it yet.

        Of an engine that was used before, the first event is `StateSeen`: what it holds.
        max_events: keep about so many, the latest; the older half of them then becomes one
        `StateSeen`, so that every step that is left can still be rebuilt (None: keep all).
        """
        if max_events is not None:
            require_positive("max_events", max_events)
        trace = cls(engine_header(engine))
        trace.tokenizer, trace._max_events = engine.tokenizer, max_events
        state = live_state(engine)
        if state.step or state.sequences or any(state.contents):
            trace(store(state))
        return trace

    @classmethod
    @contextmanager
    def record(cls, engine: Engine, *, max_events: int | None = None) -> Iterator[Trace]:
        """Record everything the engine states while the block runs; the trace stays afterwards.

        max_events: as for `begin`.
        """
        trace = cls.begin(engine, max_events=max_events)
        unsubscribe = engine.bus.subscribe(trace)
        try:
            yield trace
        finally:
            unsubscribe()

    def __call__(self, event: Event, _clock: Callable[[], float] = time.perf_counter) -> None:
        """Take one event: a trace is a subscriber."""
        self.events.append(event)
        self.seconds.append(_clock() - self._start)
        if self._max_events is not None and type(event) is StepDone:
            self._keep_to(self._max_events)

    def _keep_to(self, max_events: int) -> None:
        """Shorten it if nobody reads it; one that is twice too long waits for that."""
        if len(self.events) > max_events:
            much_too_long = len(self.events) > 2 * max_events
            if self._reading.acquire(blocking=much_too_long):
                try:
                    self._shorten(max_events)
                finally:
                    self._reading.release()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the places of events while the block reads them; it may grow, on any thread."""
        with self._reading:
            yield

    def _shorten(self, max_events: int) -> None:
        """Make one event of the older steps."""
        ends = self.events.kinds()
        cut = next(
            place + 1
            for place in range(len(self.events) - max_events // 2 - 1, len(self.events))
            if ends[place] is StepDone
        )
        state = ReplayedState(self.layout)
        for event in self.events[:cut]:
            apply(state, event)
        self.events.replace_first(cut, store(state))
        self.seconds = array("d", [self.seconds[cut - 1], *self.seconds[cut:]])
        self._timeline = None
        self.num_shortened += 1

    def _so_far(self) -> tuple[array[float], EventLog]:
        """Return times and events as they are now, of which an event comes before its time."""
        with self.reading():
            count = len(self.seconds)
            return self.seconds[:count], self.events.first(count)

    def __len__(self) -> int:
        """Number of events."""
        return len(self.events)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind, in order."""
        return self.events.of(kind)

    # --- time ---------------------------------------------------------------------------------

    @property
    def layout(self) -> CacheLayout:
        """The sizes of the cache; `TraceError` if the header lacks them."""
        return CacheLayout.from_header(self.header)

    @property
    def timeline(self) -> Timeline:
        """The trace's states; made when it is first asked for, and it grows with the trace."""
        if self._timeline is None:
            self._timeline = Timeline(self.events, self.layout)
        self._timeline.extend()
        return self._timeline

    @property
    def steps(self) -> list[int]:
        """The committed steps, in order."""
        return list(self.timeline.steps)

    def at(self, step: int) -> ReplayedState:
        """Return allocator and scheduler as they were right after a step; it is yours to change.

        Raises `TraceError` for a step that was not committed in this trace.
        """
        with self.reading():
            return self.timeline.at(step)

    def replay(self) -> Iterator[tuple[ReplayedState, ReplayedStep]]:
        """Yield the state after each step with what it changed; see `workbench.trace.replay`."""
        return replay(self._so_far()[1], self.layout)

    # --- tokens -------------------------------------------------------------------------------

    @property
    def sequences(self) -> dict[int, SequenceLog]:
        """Every sequence by id, with where each of its tokens came from; read anew each time."""
        seconds, events = self._so_far()
        return sequence_logs(events, seconds)

    def piece_of(self, token_id: int) -> str | None:
        """Return what a token reads as alone; None where neither tokenizer nor file knows it.

        Bytes that are only a part of a character come as lone surrogates (PEP 383), so that a
        reader of several tokens can make the character again.
        """
        piece: str | None = self.header.get("texts", {}).get(str(token_id))
        if piece is None and self.tokenizer is not None:
            piece = self.tokenizer.piece(token_id).decode("utf-8", "surrogateescape")
        return piece

    def text_of(self, token_id: int) -> str:
        """Return a token as text; a piece of a character shows as `�`, an unknown one as its id."""
        piece = self.piece_of(token_id)
        if piece is None:
            return f"<{token_id}>"
        return piece.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    # --- files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write what was recorded so far to a file (gzipped JSON lines) and return its path."""
        header, (seconds, events) = self.header, self._so_far()
        if self.tokenizer is not None:
            texts = {str(i): self.piece_of(i) for i in sorted(token_ids(events))}
            header = {**header, "texts": texts}
        return file.write(Path(path), header, seconds, events)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace; `TraceError` if it is truncated, foreign or of another version."""
        header, seconds, events = file.read(Path(path))
        trace = cls(header)
        trace.seconds, trace.events = seconds, events
        return trace

    def to_perfetto(self, path: str | Path) -> Path:
        """Write a Chrome trace (JSON) for ui.perfetto.dev: steps, requests, batch and KV use."""
        return perfetto.write(Path(path), self.header, zip(*self._so_far(), strict=True))

    def to_pandas(self, kind: type[Event] | None = None) -> Any:
        """Return the events of one kind as a `pandas.DataFrame`, a row each, with their `seconds`.

        A column for each field; kind None: events of all kinds, with columns `kind` and `event`.
        Raises `MissingExtra` if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtra("Trace.to_pandas", "pandas", "notebook") from error
        seconds, events = self._so_far()
        kinds = events.kinds()
        if kind is None:
            named = [found.__name__ for found in kinds]
            return pd.DataFrame({"seconds": seconds, "kind": named, "event": events})
        rows = [
            (when, *events.row(place)[1])
            for place, when in enumerate(seconds)
            if kinds[place] is kind
        ]
        return pd.DataFrame(rows, columns=["seconds", *field_names(kind)])

    def describe(self) -> dict[str, Any]:
        """Return the trace in numbers."""
        seconds, events = self._so_far()
        kinds = Counter(kind.__name__ for kind in events.kinds())
        done = events.of(StepDone)
        return {
            "events": len(events),
            "steps": len(done),
            "tokens in": sum(sum(row[2] for row in plan.rows) for plan in events.of(StepPlanned)),
            "tokens out": sum(len(step.tokens) for step in done),
            "seconds": round(seconds[-1], 3) if seconds else 0,
            "kinds": ", ".join(f"{name} {count}" for name, count in kinds.most_common()),
        }


def engine_header(engine: Engine) -> dict[str, Any]:
    """Return what a reader needs to know of the engine behind a trace."""
    engine.require_open()
    return {
        "model": engine.model.config.architecture,
        "device": str(engine.runner.device),
        "backend": engine.runner.backend.name,
        **CacheLayout.of(engine.cache).to_header(),
        "num_blocks": engine.cache.num_blocks,
        "cache_bytes": engine.cache.num_bytes,
        "weight_bytes": sum(weight.nbytes for weight in engine.model.parameters()),
        "max_batch_tokens": engine.scheduler.config.max_batch_tokens,
        "max_sequences": engine.scheduler.config.max_sequences,
        "started": time.time(),
    }
