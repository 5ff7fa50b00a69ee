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
from workbench.request import Sequence


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
        self._need(running)
        self._settle()

    def admits(self, sequence: Sequence, *, wait: bool) -> bool:
        """Whether a waiting sequence's adapters are on the device; brings them there if there is
        room. wait: rather for the disk than not at all.

        Raises `AdapterError` for an adapter that cannot be read any more.
        """
        if self._patience.reserved_for_another(sequence):
            return False
        entries = [self.store.entries[use.name] for use in sequence.request.lora]
        were_there = [entry.resident is not None for entry in entries]
        needed = set(self.slots.needed)
        for entry in entries:
            if not self.bring(entry, cause="wanted", wait=wait):
                self._refuse(sequence, entry)
                self.slots.needed = needed
                return False
            self.slots.needed.add(entry.name)
        self._patience.admitted(sequence)
        for entry, there in zip(entries, were_there, strict=True):
            entry.hits += there
            entry.misses += not there
        return True

    def _refuse(self, sequence: Sequence, entry: Entry) -> None:
        cause = "being read" if self.slots.has_room(entry) else "no room"
        if cause == "no room":
            self._patience.refused(sequence)
        self.facts.tell(AdapterAwaited, sequence.sequence_id, entry.name, cause)

    def bring(self, entry: Entry, *, cause: str, wait: bool) -> bool:
        """Put an adapter on the device; False if there is no room, or it is still being read."""
        self.store.touch(entry)
        if entry.resident is not None:
            return True
        if not self.slots.has_room(entry):
            return False
        source = entry.tier
        packed = self.store.fetch(entry, wait=wait)
        if packed is None:
            return False
        for victim in self.slots.put(entry, packed):
            self.facts.tell(AdapterMoved, victim.name, "device", victim.tier, "room", (), 0.0)
        assert entry.resident is not None, "it was put there"
        moved = "device", cause, entry.resident.rows, entry.seconds["to device"]
        self.facts.tell(AdapterMoved, entry.name, source, *moved)
        return True

    def close(self) -> None:
        """Let go of the adapters: the scheduler keeps the gate."""
        del self.store, self.slots, self._settle, self.running
