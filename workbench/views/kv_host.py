"""`HostSlots`: which host slots look different, and for whom each is kept.

The replay tells of changed blocks by itself (`ReplayedState.touched`); slots it does not follow.
Used by `KVLog`.
"""

from __future__ import annotations

from collections.abc import Iterable

from workbench import events
from workbench.events import Event
from workbench.trace.state import ReplayedState


class HostSlots:
    """Is shown each event before it is applied, since some go by what was kept until then."""

    def __init__(self) -> None:
        self.changed: set[int] = set()  # whoever writes them down clears it
        self._keepers: dict[int, tuple[int, ...]] = {}

    def keeper(self, slot: int) -> int | None:
        """Return one of the sequences that a slot is kept for, or None."""
        keepers = self._keepers.get(slot)
        return keepers[0] if keepers else None

    def begin(self, state: ReplayedState) -> None:
        """Begin with a state; all its slots count as changed."""
        self.changed.update(range(state.layout.num_slots))
        for number, kept in state.swapped.items():
            self._keep(number, kept.slots)

    def note(self, event: Event, before: ReplayedState) -> None:
        """Take in an event; `before`: the state without it."""
        match event:
            case events.BlockOffloaded() | events.BlockRestored():
                self.changed.add(event.slot)
            case events.SwappedOut():
                self._keep(event.sequence_id, event.slots)
            case events.SwappedIn() | events.RequestFinished():
                kept = before.swapped.get(event.sequence_id)
                if kept is not None:
                    self._let_go(event.sequence_id, kept.slots)
            case events.BlocksMoved():
                self.changed.update(before.restoring.values())
            case events.BlockFreed():
                if event.block_id in before.restoring:
                    self.changed.add(before.restoring[event.block_id])
            case events.HostCleared():
                self.changed.update(range(before.layout.num_slots))
            case _:
                pass

    def _keep(self, number: int, slots: Iterable[int]) -> None:
        for slot in slots:
            self._keepers[slot] = (*self._keepers.get(slot, ()), number)
            self.changed.add(slot)

    def _let_go(self, number: int, slots: Iterable[int]) -> None:
        for slot in slots:
            self._keepers[slot] = tuple(k for k in self._keepers[slot] if k != number)
            self.changed.add(slot)
