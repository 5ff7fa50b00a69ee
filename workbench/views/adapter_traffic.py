"""`AdapterTraffic`: which requests go through which adapters, and how fast, from events alone.

A request that goes through two adapters counts for both; one through none counts for the base,
whose name here is the empty text. `LoRAPanel` reads it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from functools import singledispatchmethod

from workbench import events as ev
from workbench.lora.names import parse_uses

BASE = ""
SECONDS = 2.0  # over which a rate is meant


class AdapterTraffic:
    """Takes events with the time of each; `tokens` and `requests` count since it listens.

    An engine's thread may tell it events while a panel's asks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.tokens: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._names: dict[int, tuple[str, ...]] = {}  # of sequences that have not ended
        self._ended: list[int] = []  # their last tokens are told of after their end
        self._recent: deque[tuple[float, Counter[str]]] = deque()

    def take(self, event: ev.Event, now: float) -> None:
        """Take an event in; now: seconds of any clock that does not go back."""
        with self._lock:
            self._take(event, now)

    def rates(self, now: float) -> dict[str, float]:
        """Return tokens per second over the last `SECONDS`, of those who made any."""
        made: Counter[str] = Counter()
        with self._lock:
            self._forget_before(now - SECONDS)
            for _, counts in self._recent:
                made.update(counts)
        return {name: count / SECONDS for name, count in made.items()}

    def running(self) -> Counter[str]:
        """Return how many sequences that have not ended go through each adapter."""
        with self._lock:
            return Counter(name for names in self._names.values() for name in names)

    def _forget_before(self, time: float) -> None:
        while self._recent and self._recent[0][0] <= time:
            self._recent.popleft()

    @singledispatchmethod
    def _take(self, event: ev.Event, now: float) -> None:
        """Most kinds say nothing here."""

    @_take.register
    def _(self, event: ev.RequestAdded, now: float) -> None:
        names = tuple(parse_uses(event.lora)) if event.lora else (BASE,)
        self._names[event.sequence_id] = names
        if not event.branch:
            self.requests.update(names)

    @_take.register
    def _(self, event: ev.SequenceForked, now: float) -> None:
        self._names[event.sequence_id] = self._names.get(event.parent_id, (BASE,))

    @_take.register
    def _(self, event: ev.RequestFinished, now: float) -> None:
        self._ended.append(event.sequence_id)

    @_take.register
    def _(self, event: ev.StepDone, now: float) -> None:
        made: Counter[str] = Counter()
        for sequence_id, _ in event.tokens:
            made.update(self._names.get(sequence_id, (BASE,)))
        self.tokens.update(made)
        self._recent.append((now, made))
        for sequence_id in self._ended:
            self._names.pop(sequence_id, None)
        self._ended.clear()
        self._forget_before(now - SECONDS)
