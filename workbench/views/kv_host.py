"""Which host slots an event changes: asked before it is applied, since some go by what was kept.

The replay tells of changed blocks by itself (`ReplayedState.touched`); slots it does not follow.
"""

from __future__ import annotations

from collections.abc import Iterable

from workbench import events
from workbench.events import Event
from workbench.trace.state import ReplayedState


def changed_slots(event: Event, before: ReplayedState) -> Iterable[int]:
    """Return the slots that may look different after `event`; `before`: the state without it."""
    match event:
        case events.BlockOffloaded() | events.BlockRestored():
            return (event.slot,)
        case events.SwappedOut():
            return event.slots
        case events.SwappedIn() | events.RequestFinished():
            kept = before.swapped.get(event.sequence_id)
            return () if kept is None else kept.slots
        case events.BlocksMoved():
            return before.restoring.values()
        case events.BlockFreed():
            slot = before.restoring.get(event.block_id)
            return () if slot is None else (slot,)
        case events.HostCleared():
            return range(before.layout.num_slots)
        case _:
            return ()
