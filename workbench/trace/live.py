"""`live_state`: what a replay of everything so far would say of an engine, read off the engine.

For whoever begins to watch an engine that already runs: a recording, or a view that subscribes. It
only reads, between two steps.
"""

from __future__ import annotations

from workbench.cache import KVCache
from workbench.engine import Engine
from workbench.request import Sequence
from workbench.trace.layout import CacheLayout
from workbench.trace.state import BlockTableState, ReplayedState, SequenceState, SwappedState


def live_state(engine: Engine) -> ReplayedState:
    """Return the state of an engine now; `EngineClosed` after `close()`."""
    engine.require_open()
    scheduler = engine.scheduler
    state = ReplayedState(CacheLayout.of(engine.cache))
    state.step = scheduler.step
    queued = {s.sequence_id: s for s in [*scheduler.waiting, *scheduler.running, *scheduler.paused]}
    known = [s for record in engine.requests.values() for s in record.sequences if not s.finished]
    for sequence in sorted([*queued.values(), *known], key=lambda s: s.sequence_id):
        number = sequence.sequence_id
        status = sequence.status.value if number in queued else "compiling"
        state.sequences[number] = _sequence(sequence, status, engine.cache)
        state.tokens[number] = list(sequence.token_ids)
    state.running = {s.sequence_id: state.sequences[s.sequence_id] for s in scheduler.running}
    _read_blocks(state, engine.cache)
    _read_host(state, engine.cache)
    return state


def _sequence(sequence: Sequence, status: str, cache: KVCache) -> SequenceState:
    tables = [group.tables.get(sequence.sequence_id) for group in cache.blocks.groups]
    metrics = sequence.metrics
    return SequenceState(
        sequence.sequence_id,
        sequence.request.request_id,
        sequence.index,
        sequence.num_prompt_tokens,
        sequence.num_tokens,
        status,
        num_computed=sequence.num_computed,
        num_cached=None if metrics.first_scheduled is None else metrics.num_cached_tokens,
        num_preemptions=metrics.num_preemptions,
        holds_blocks=tables[0] is not None,
        tables=[
            BlockTableState(table.first, list(table.block_ids), list(table.holes))
            if table is not None and (table.block_ids or table.holes)
            else BlockTableState()
            for table in tables
        ],
    )


def _read_blocks(state: ReplayedState, cache: KVCache) -> None:
    state.references = list(cache.blocks.ref_counts)
    for group in cache.blocks.groups:
        for content_hash, block_id in group.prefix.items():
            state.contents[block_id] = content_hash.hex()
        for number, table in group.tables.items():
            for index, block_id in zip(table.indices, table.block_ids, strict=True):
                state.owners[block_id] = (*state.owners[block_id], number)
                state.positions[block_id] = index
    state.copies = list(cache.blocks.pending_copies)


def _read_host(state: ReplayedState, cache: KVCache) -> None:
    host = cache.blocks.host
    if host is None:
        return
    state.slot_holds = list(host.holds)
    for content_hash, slot in host.items():
        state.slot_contents[slot] = content_hash.hex()
        state.slot_of[content_hash.hex()] = slot
    contents = enumerate(state.contents)
    state.block_of = {content: block for block, content in contents if content is not None}
    state.swapped = {i: SwappedState(k.slots, k.num_tokens) for i, k in host.swapped.items()}
    state.offloading, state.restoring = dict(host.offloading), dict(host.restoring)
