"""`Turns`: in which order those who wait for adapters are given room on the device.

Requests that name the same adapters wait together, for one turn: once these are there, all of them
start. Turns come in the order of the waiting queue. One that found no room for `LIMIT` steps is
first until it has it: it may take the room of idle adapters that others behind it wait for, and
where everything runs the adapter that fewest run through is closed: it takes no more requests, so
that its room is free when these have ended. All others go on meanwhile. Used by the gate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from workbench.lora.store import Entry
from workbench.lora.table import Uses
from workbench.request import Sequence, Status

LIMIT = 32


class Turns:
    """`line`: what is waited for, in order. wanted: the place in it of the first who wants an
    adapter, by name. `closed`: the adapters that nobody new may start with."""

    def __init__(self) -> None:
        self.line: list[Uses] = []
        self.wanted: dict[str, int] = {}
        self.closed: set[str] = set()
        self.first: Uses | None = None
        self._refused: dict[Uses, int] = {}  # the step in which each first found no room
        self._step = 0

    def begin(self, step: int, waiting: Iterable[Sequence]) -> None:
        """Begin a step, with the queue in its order."""
        self._step = step
        found = dict.fromkeys(s.request.lora for s in waiting if s.request.lora)
        if self._refused:
            self._refused = {uses: at for uses, at in self._refused.items() if uses in found}
        if self.first not in found:
            self._choose()
        self.line = list(found)
        if self.first is not None:
            self.line.remove(self.first)
            self.line.insert(0, self.first)
        self.wanted = {}
        for place, uses in enumerate(self.line):
            for use in uses:
                self.wanted.setdefault(use.name, place)

    def _choose(self) -> None:
        """Let who was refused first go first, if that is long enough ago."""
        self.first, self.closed = None, set()
        longest = min(self._refused, key=self._refused.__getitem__, default=None)
        if longest is not None and self._step - self._refused[longest] >= LIMIT:
            self.first = longest

    def refused(self, uses: Uses) -> None:
        """Note that there is no room for a turn's adapters, or that one is closed."""
        self._refused.setdefault(uses, self._step)

    def served(self, uses: Uses) -> None:
        """Note that a turn's adapters have room."""
        self._refused.pop(uses, None)
        if uses == self.first:
            self.first, self.closed = None, set()

    def may_start(self, uses: Uses) -> bool:
        """Whether sequences may start with these adapters, if they are there."""
        return not self.closed or uses == self.first or not self._names(uses) & self.closed

    def close(self, needed: Iterable[Entry], holding: Iterable[Sequence], lacking: int) -> None:
        """Close adapters that these sequences need until they leave `lacking` rank rows: those that
        fewest go through, those of a paused one last. They stay closed until `first` has its turn.
        """
        users: Counter[str] = Counter()
        paused: set[str] = set()
        for sequence in holding:
            names = self._names(sequence.request.lora)
            users.update(names)
            if sequence.status is not Status.RUNNING:
                paused |= names
        own = self._names(self.first or ())
        may = [e for e in needed if not e.pinned and e.name not in own]
        lacking -= sum(e.rank for e in may if e.name in self.closed)
        may.sort(key=lambda e: (e.name in paused, users[e.name], e.name in self.wanted))
        for entry in may:
            if lacking > 0 and entry.name not in self.closed:
                self.closed.add(entry.name)
                lacking -= entry.rank

    @staticmethod
    def _names(uses: Uses) -> set[str]:
        return {use.name for use in uses}
