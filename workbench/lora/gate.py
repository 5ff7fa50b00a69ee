"""`AdapterGate`: whether a waiting sequence's adapters are on the device, and what brings them
there.

As a step begins it looks at the whole queue: what is waited for is brought in the order of `Turns`,
several at once, as far as there is room that nobody needs. The scheduler asks before it starts a
sequence that names adapters. Loading from disk goes on in a thread while others run. What running
sequences need is told anew at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from workbench.errors import AdapterError
from workbench.events import AdapterAwaited, AdapterMoved
from workbench.lora.facts import Facts
from workbench.lora.slots import DeviceSlots
from workbench.lora.store import AdapterStore, Entry
from workbench.lora.table import Uses
from workbench.lora.turns import Turns
from workbench.request import Sequence, Status


class AdapterGate:
    """Lets sequences start whose adapters are there.

    settle: called as a step begins. `running`: returns the sequences that hold blocks.
    """

    def __init__(
        self, store: AdapterStore, slots: DeviceSlots, facts: Facts, settle: Callable[[], None]
    ) -> None:
        self.store, self.slots, self.facts, self._settle = store, slots, facts, settle
        self.running: Callable[[], Iterable[Sequence]] = tuple
        self.turns = Turns()
        self._lost: dict[str, AdapterError] = {}  # adapters that this step could not read again
        self._given: set[str] = set()  # those that were given room in this step
        self._asked: dict[
            int, tuple[Sequence, dict[str, bool]]
        ] = {}  # by sequences not counted yet

    def look(self) -> None:
        """Ask anew, between two steps, who runs and needs its adapters."""
        self._need(self.running())

    def _need(self, running: Iterable[Sequence]) -> None:
        names = (use.name for sequence in running for use in sequence.request.lora)
        self.slots.need(dict.fromkeys(names))

    def begin(self, step: int, running: Collection[Sequence], waiting: Iterable[Sequence]) -> None:
        """Begin a step, in which these sequences keep their adapters on the device, and bring what
        others wait for."""
        self.facts.step = step
        if not self.store.entries:
            return
        self.tally()
        for entry, move in self.slots.arrived():
            self._tell(entry, move.source, move.cause)
        self._need(running)
        self._settle()
        self._lost.clear()
        self._given.clear()
        self.turns.begin(step, waiting)
        self.slots.wanted = self.turns.wanted
        if self.turns.line:
            self._bring_in_turn(running)

    def _bring_in_turn(self, running: Iterable[Sequence]) -> None:
        """Bring what is waited for, turn after turn, while there is room.

        Idle adapters make way that nobody waits for, and to the first those that others do. Those
        that find no room yet are read from disk, as far as half of host memory holds them.
        """
        turns, slots, entries = self.turns, self.slots, self.store.entries
        room, ahead = slots.room(), (self.store.host_bytes or 0) // 2
        for place, uses in enumerate(turns.line):
            lacking = [
                entry
                for use in uses
                if (entry := entries[use.name]).resident is None
                and entry.moving is None
                and use.name not in self._given
            ]
            first = uses == turns.first
            if not lacking:
                if first:
                    turns.closed.clear()
                continue
            short = room.take(sum(entry.rank for entry in lacking), place if first else None)
            if not short:
                for entry in lacking:
                    self._begin_to_bring(entry)
                continue
            turns.refused(uses)
            if ahead > 0:
                ahead = self._read_ahead(lacking, ahead)
            if first:
                turns.close(slots.running(), running, short)
                room.close()

    def _begin_to_bring(self, entry: Entry) -> None:
        self._given.add(entry.name)
        try:
            self.bring(entry, cause="wanted", wait=False)
        except AdapterError as error:
            self._lost[entry.name] = error

    def _read_ahead(self, entries: list[Entry], left: int) -> int:
        """Have the next ones in line in host memory before there is room on the device, within
        `left` bytes of it; return what is left then."""
        for entry in entries:
            left -= entry.num_bytes
            if left >= 0:
                self.store.touch(entry)
                try:
                    self.store.fetch(entry, wait=False)
                except AdapterError as error:
                    self._lost[entry.name] = error
        return left

    def _entries(self, uses: Uses) -> list[Entry]:
        return [self.store.entries[use.name] for use in uses]

    def admits(self, sequence: Sequence, *, wait: bool) -> bool:
        """Whether a waiting sequence's adapters are on the device. wait: nothing else could run, so
        it is rather waited for the disk than for the next step.

        Raises `AdapterError` for an adapter that cannot be read any more.
        """
        uses = sequence.request.lora
        entries = self._entries(uses)
        self._note(sequence, entries)
        if not self.turns.may_start(uses):
            self.turns.refused(uses)
            return self._refuse(sequence, entries[0])
        needed = set(self.slots.needed)
        for entry in entries:
            if entry.name in self._lost:
                raise self._lost[entry.name]
            there = entry.resident is not None
            if not there and not (wait and self.bring(entry, cause="wanted", wait=True)):
                self.slots.needed = needed
                return self._refuse(sequence, entry)
            self.slots.needed.add(entry.name)
        self.turns.served(uses)
        return True

    def _note(self, sequence: Sequence, entries: list[Entry]) -> None:
        """Note what was on the device when a request was first to start."""
        first = sequence.leader is None and not sequence.metrics.num_preemptions
        if first and sequence.sequence_id not in self._asked:
            here = {e.name for e in entries if e.resident is not None} - self._given
            there = {entry.name: entry.name in here for entry in entries}
            self._asked[sequence.sequence_id] = sequence, there

    def tally(self) -> None:
        """Count the hits and misses of the requests that have started since this was last done."""
        for key, (sequence, there) in list(self._asked.items()):
            if sequence.status is Status.WAITING:
                continue
            del self._asked[key]
            for name in there if sequence.num_computed else ():
                entry = self.store.entries.get(name)
                if entry is not None:
                    entry.hits += there[name]
                    entry.misses += not there[name]

    def _refuse(self, sequence: Sequence, entry: Entry) -> bool:
        comes = entry.moving is not None or entry.name in self._given
        cause = "being read" if comes else "no room"
        self.facts.tell(AdapterAwaited, sequence.sequence_id, entry.name, cause)
        return False

    def bring(self, entry: Entry, *, cause: str, wait: bool) -> bool:
        """Put an adapter on the device; False if there is no room, or it is still on its way."""
        self.store.touch(entry)
        if entry.moving is not None:
            if wait:
                source = entry.moving.source
                self.slots.finish(entry)
                self._tell(entry, source, cause)
            return wait
        if entry.resident is not None:
            return True
        if not self.slots.has_room(entry):
            return False
        source = entry.tier
        packed = self.store.fetch(entry, wait=wait)
        if packed is None:
            return False
        for victim in self.slots.put(entry, packed, cause, wait=wait):
            self.facts.tell(AdapterMoved, victim.name, "device", victim.tier, "room", (), 0.0)
        if entry.resident is None:
            return False
        self._tell(entry, source, cause)
        return True

    def _tell(self, entry: Entry, source: str, cause: str) -> None:
        assert entry.resident is not None, "it was put there"
        moved = "device", cause, entry.resident.rows, entry.seconds["to device"]
        self.facts.tell(AdapterMoved, entry.name, source, *moved)

    def close(self) -> None:
        """Let go of the adapters: the scheduler keeps the gate."""
        del self.store, self.slots, self._settle, self.running
