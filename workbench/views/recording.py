"""`Recording`: what live views look at, one trace of an engine for all of them.

It is a subscriber of the engine's bus while a view is open, and wakes the views' pacers.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakValueDictionary

from workbench.async_engine import AsyncEngine
from workbench.engine import Engine
from workbench.events import Event
from workbench.trace import Trace
from workbench.views.pace import Pacer

# About 150 bytes each here and twice as many in a view's columns: some ten MB a view, and thousands
# of steps. When there are more the older half goes, and each view reads the other half again.
MOST_EVENTS = 100_000

_RECORDINGS: WeakValueDictionary[int, Recording] = WeakValueDictionary()


class Recording:
    """A growing trace, and the pacers to poke when it has grown.

    That of an engine keeps its last `MOST_EVENTS` events, about; `Trace.record` keeps all.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._pacers: list[Pacer] = []
        self._unsubscribe: Callable[[], None] | None = None

    @classmethod
    def of(cls, engine: Engine | AsyncEngine) -> Recording:
        """Return the recording of an engine, begun now if no view looks at it yet.

        Raises `EngineClosed` after `close()`.
        """
        if isinstance(engine, AsyncEngine):  # its thread alone may look at it
            return engine.call(cls.of).result()
        # By identity: whoever holds the recording is a view, and a recording holds its bus.
        recording = _RECORDINGS.get(id(engine.bus))
        if recording is None:
            recording = _RECORDINGS[id(engine.bus)] = cls(
                Trace.begin(engine, max_events=MOST_EVENTS)
            )
            recording._unsubscribe = engine.bus.subscribe(recording)
        return recording

    def __call__(self, event: Event) -> None:
        """Take one event, on whatever thread."""
        self.trace(event)
        for pacer in self._pacers:
            pacer.poke()

    @property
    def of_engine(self) -> bool:
        """Whether an engine's bus feeds it, and no view has to."""
        return self._unsubscribe is not None

    def join(self, pacer: Pacer) -> None:
        """Poke `pacer` at each event from now on."""
        self._pacers = [*self._pacers, pacer]

    def leave(self, pacer: Pacer) -> None:
        """Poke it no more; once nobody is left, the engine is no longer listened to."""
        self._pacers = [other for other in self._pacers if other is not pacer]
        if not self._pacers and self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
            for key in [key for key, value in _RECORDINGS.items() if value is self]:
                del _RECORDINGS[key]
