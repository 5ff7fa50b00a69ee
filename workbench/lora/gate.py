"""`AdapterGate`: whether a waiting sequence's adapters are on the device, and what brings them
there.

The scheduler asks it before it starts a sequence that names adapters. Loading from disk goes on in
a thread while others run; who waits for room long enough gets it (`patience`). What running
sequences need is told anew at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workbench.events import AdapterAwaited, AdapterMoved
from workbench.lora.facts import Facts
from workbench.lora.patience import Patience
from workbench.lora.slots import DeviceSlots
from workbench.lora.store import AdapterStore, Entry
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
        self._patience = Patience()
        self._asked: dict[
            int, tuple[Sequence, dict[str, bool]]
        ] = {}  # by sequences not counted yet

    def look(self) -> None:
        """Ask anew, between two steps, who runs and needs its adapters."""
        self._need(self.running())

    def _need(self, running: Iterable[Sequence]) -> None:
        self.slots.need(use.name for sequence in running for use in sequence.request.lora)

    def begin(self, step: int, running: Iterable[Sequence]) -> None:
        """Begin a step, in which these sequences keep their adapters on the device."""
        self.facts.step = step
        if not self.store.entries:
            return
        self._patience.begin()
        self.tally()
        for entry, move in self.slots.arrived():
            self._tell(entry, move.source, move.cause)
        self._need(running)
        self._settle()

    def admits(self, sequence: Sequence, *, wait: bool) -> bool:
        """Whether a waiting sequence's adapters are on the device; brings them there if there is
        room. wait: rather for the disk than not at all.

        Raises `AdapterError` for an adapter that cannot be read any more.
        """
        entries = [self.store.entries[use.name] for use in sequence.request.lora]
        self._note(sequence, entries)
        if self._patience.reserved_for_another(sequence):
            return False
        needed = set(self.slots.needed)
        for entry in entries:
            if not self.bring(entry, cause="wanted", wait=wait):
                self._refuse(sequence, entry)
                self.slots.needed = needed
                return False
            self.slots.needed.add(entry.name)
        self._patience.admitted(sequence)
        return True

    def _note(self, sequence: Sequence, entries: list[Entry]) -> None:
        """Note what was on the device when a request was first to start."""
        first = sequence.leader is None and not sequence.metrics.num_preemptions
        if first and sequence.sequence_id not in self._asked:
            there = {entry.name: entry.resident is not None for entry in entries}
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

    def _refuse(self, sequence: Sequence, entry: Entry) -> None:
        cause = "being read" if self.slots.has_room(entry) else "no room"
        if cause == "no room":
            self._patience.refused(sequence)
        self.facts.tell(AdapterAwaited, sequence.sequence_id, entry.name, cause)

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
