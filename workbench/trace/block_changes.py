"""What events of blocks change in a `ReplayedState`: tables, references, what can be found.

Mirrors `workbench.cache.blocks` and its pool. Found through `CHANGES`, by the event's class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench import events
from workbench.errors import TraceError
from workbench.trace.host_changes import release_slot
from workbench.trace.state import ReplayedState


def _hold(state: ReplayedState, event: events.BlockAllocated | events.BlockShared) -> None:
    """Put a block at the end of a sequence's table."""
    block, number = event.block_id, event.sequence_id
    table = state.sequences[number].tables[state.layout.group_of(block)]
    if not table.block_ids and not table.holes:
        table.first = event.index
    elif table.place(event.index) != len(table.block_ids):
        number = table.first + len(table.block_ids) + len(table.holes)
        raise ValueError(f"the next block is number {number}")
    table.block_ids.append(block)
    state.references[block] += 1
    state.owners[block] = (*state.owners[block], number)
    state.positions[block] = event.index
    state.touched.add(block)


def _block_copied(state: ReplayedState, event: events.BlockCopied) -> None:
    block, source, number = event.block_id, event.source, event.sequence_id
    table = state.sequences[number].tables[state.layout.group_of(block)]
    table.block_ids[table.place(event.index)] = block
    state.owners[source] = _without(state.owners[source], number)
    state.owners[block], state.references[block] = (number,), 1
    state.positions[block] = event.index
    state.copies.append((source, block))  # it holds the reference on the source now
    state.touched.update((block, source))


def _block_released(state: ReplayedState, event: events.BlockReleased) -> None:
    block, number = event.block_id, event.sequence_id
    state.references[block] = event.num_references
    state.touched.add(block)
    if number is None:
        mine = [copy for copy in state.copies if copy[0] == block]
        dropped = [copy for copy in mine if not state.references[copy[1]]]
        state.copies.remove((dropped or mine)[0])
        return
    state.owners[block] = _without(state.owners[block], number)
    table = state.find(number).tables[state.layout.group_of(block)]
    ids = table.block_ids
    if block not in ids:  # dropped, as was told before
        return
    if ids[-1] == block:  # a table is freed from its end
        ids.pop()
    else:  # a window lets go of the first blocks, the last of them first
        ids[ids.index(block)] = _GONE
    while ids and ids[-1] == _GONE:
        ids.pop()
    gone = 0
    while gone < len(ids) and ids[gone] == _GONE:
        gone += 1
    del ids[:gone]
    table.first = table.first + gone if ids else 0
    if not ids:
        table.holes.clear()


def _blocks_dropped(state: ReplayedState, event: events.BlocksDropped) -> None:
    [table] = state.find(event.sequence_id).tables  # nothing is dropped where there are groups
    if table.block_ids:  # else it is a fork, whose blocks come next
        gone = {table.block_ids[table.place(index)] for index in event.indices}
        table.block_ids = [block for block in table.block_ids if block not in gone]
    table.holes = sorted([*table.holes, *event.indices])


_GONE = -1  # in a table, between the events of one release


def _without(owners: tuple[int, ...], number: int) -> tuple[int, ...]:
    return tuple([owner for owner in owners if owner != number])


def _block_freed(state: ReplayedState, event: events.BlockFreed) -> None:
    if not event.cached:
        _forget(state, event.block_id)
    slot = state.restoring.pop(event.block_id, None)
    if slot is not None:
        release_slot(state, slot)
    state.touched.add(event.block_id)


def _block_cached(state: ReplayedState, event: events.BlockCached) -> None:
    state.contents[event.block_id] = event.content_hash
    if state.slot_holds:
        state.block_of[event.content_hash] = event.block_id
    state.touched.add(event.block_id)


def _block_evicted(state: ReplayedState, event: events.BlockEvicted) -> None:
    _forget(state, event.block_id)
    state.touched.add(event.block_id)


def _forget(state: ReplayedState, block: int) -> None:
    content = state.contents[block]
    if content is not None:
        state.contents[block] = None
        state.block_of.pop(content, None)


def _rebalanced(state: ReplayedState, event: events.MemoryRebalanced) -> None:
    """Nothing, unless there are more blocks now than whoever reads this has places for."""
    if event.num_blocks > state.layout.num_blocks:
        raise TraceError(
            f"the cache has {event.num_blocks} blocks from step {event.step} on, and had "
            f"{state.layout.num_blocks} when this was begun: record, or open the view, anew."
        )


CHANGES: dict[type[events.Event], Callable[[ReplayedState, Any], None]] = {
    events.BlockAllocated: _hold,
    events.BlockShared: _hold,
    events.BlockCopied: _block_copied,
    events.BlockReleased: _block_released,
    events.BlockFreed: _block_freed,
    events.BlocksDropped: _blocks_dropped,
    events.BlockCached: _block_cached,
    events.BlockEvicted: _block_evicted,
    events.MemoryRebalanced: _rebalanced,
}
