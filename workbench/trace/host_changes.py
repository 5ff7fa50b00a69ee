"""What events of the host tier change in a `ReplayedState`: what a slot holds, and for whom.

Mirrors `workbench.cache.host`. Found through `CHANGES`, by the event's class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench import events
from workbench.trace.state import ReplayedState, SwappedState


def _block_offloaded(state: ReplayedState, event: events.BlockOffloaded) -> None:
    slot = event.slot
    _forget_slot(state, slot)
    state.slot_contents[slot] = event.content_hash
    if event.content_hash is not None:
        state.slot_of[event.content_hash] = slot
        _touch_content(state, event.content_hash)
    state.offloading[slot] = event.block_id


def _swapped_out(state: ReplayedState, event: events.SwappedOut) -> None:
    state.swapped[event.sequence_id] = SwappedState(event.slots, event.num_tokens)
    for slot in event.slots:
        state.slot_holds[slot] += 1


def _swapped_in(state: ReplayedState, event: events.SwappedIn) -> None:
    drop_kept(state, event.sequence_id)


def drop_kept(state: ReplayedState, sequence_id: int) -> None:
    """Let go of what the host keeps for a sequence, if anything."""
    kept = state.swapped.pop(sequence_id, None)
    for slot in kept.slots if kept is not None else ():
        release_slot(state, slot)


def _block_restored(state: ReplayedState, event: events.BlockRestored) -> None:
    state.slot_holds[event.slot] += 1
    state.restoring[event.block_id] = event.slot


def _blocks_moved(state: ReplayedState, event: events.BlocksMoved) -> None:
    if event.direction == "offload":
        state.offloading.clear()
        return
    for block, slot in state.restoring.items():
        release_slot(state, slot)
        state.touched.add(block)
    state.restoring.clear()


def _host_cleared(state: ReplayedState, event: events.HostCleared) -> None:
    for slot, content in enumerate(state.slot_contents):
        if content is not None:
            _forget_slot(state, slot)
            if not state.slot_holds[slot]:
                state.offloading.pop(slot, None)


def release_slot(state: ReplayedState, slot: int) -> None:
    """Undo one hold of a slot."""
    state.slot_holds[slot] -= 1
    if not state.slot_holds[slot] and state.slot_contents[slot] is None:
        state.offloading.pop(slot, None)


def _forget_slot(state: ReplayedState, slot: int) -> None:
    content = state.slot_contents[slot]
    if content is not None:
        state.slot_contents[slot] = None
        del state.slot_of[content]
        _touch_content(state, content)


def _touch_content(state: ReplayedState, content: str) -> None:
    """A block that can be found by this looks different: the host has it now, or no more."""
    block = state.block_of.get(content)
    if block is not None:
        state.touched.add(block)


CHANGES: dict[type[events.Event], Callable[[ReplayedState, Any], None]] = {
    events.BlockOffloaded: _block_offloaded,
    events.SwappedOut: _swapped_out,
    events.SwappedIn: _swapped_in,
    events.BlockRestored: _block_restored,
    events.BlocksMoved: _blocks_moved,
    events.HostCleared: _host_cleared,
}
