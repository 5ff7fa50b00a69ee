"""A whole `ReplayedState` in one event, `StateSeen`, and back.

A recording of an engine that already runs begins with one, and so does what is left of a recording
whose beginning was dropped. How the event's fields are laid out is known here alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.events import StateSeen
from workbench.trace.state import BlockTableState, ReplayedState, SequenceState, SwappedState


def store(state: ReplayedState) -> StateSeen:
    """Return a state between two steps as an event; what ended before is not part of it."""
    blocks = zip(state.references, state.contents, state.owners, state.positions, strict=True)
    slots = zip(state.slot_holds, state.slot_contents, strict=True)
    return StateSeen(
        state.step,
        running=tuple(state.running),
        sequences=tuple(_packed(s, state.tokens[i]) for i, s in state.sequences.items()),
        blocks=tuple(
            (block, count, content, owners, index)
            for block, (count, content, owners, index) in enumerate(blocks)
            if count or content is not None
        ),
        copies=tuple(state.copies),
        slots=tuple(
            (slot, holds, content)
            for slot, (holds, content) in enumerate(slots)
            if holds or content is not None
        ),
        swapped=tuple((i, kept.slots, kept.num_tokens) for i, kept in state.swapped.items()),
        offloading=tuple(state.offloading.items()),
        restoring=tuple(state.restoring.items()),
    )


def load(state: ReplayedState, event: StateSeen) -> None:
    """Put what `store` packed into a new state."""
    state.step = event.step
    for sequence, token_ids in sequences_of(event):
        state.sequences[sequence.sequence_id] = sequence
        state.tokens.setdefault(sequence.sequence_id, token_ids)
    state.running = {number: state.sequences[number] for number in event.running}
    for block, count, content, owners, index in event.blocks:
        state.references[block], state.contents[block] = count, content
        state.owners[block], state.positions[block] = owners, index
        if content is not None and state.slot_holds:
            state.block_of[content] = block
        state.touched.add(block)
    state.copies = list(event.copies)
    for slot, holds, content in event.slots:
        state.slot_holds[slot], state.slot_contents[slot] = holds, content
        if content is not None:
            state.slot_of[content] = slot
    state.swapped = {i: SwappedState(slots, count) for i, slots, count in event.swapped}
    state.offloading, state.restoring = dict(event.offloading), dict(event.restoring)


def sequences_of(event: StateSeen) -> Iterator[tuple[SequenceState, list[int]]]:
    """Yield each sequence that there was, with its tokens, prompt and output."""
    return map(_unpacked, event.sequences)


def _packed(sequence: SequenceState, token_ids: list[int]) -> tuple[Any, ...]:
    return (
        sequence.sequence_id,
        sequence.request_id,
        sequence.branch,
        sequence.num_prompt_tokens,
        tuple(token_ids[: sequence.num_tokens]),
        sequence.status,
        sequence.num_computed,
        sequence.num_cached,
        sequence.num_preemptions,
        sequence.parent_id,
        sequence.num_forked,
        sequence.holds_blocks,
        tuple((t.first, tuple(t.block_ids), tuple(t.holes)) for t in sequence.tables),
    )


def _unpacked(packed: tuple[Any, ...]) -> tuple[SequenceState, list[int]]:
    number, request_id, branch, num_prompt, token_ids, status, computed, *rest = packed
    num_cached, num_preemptions, parent_id, num_forked, holds_blocks, tables = rest
    tokens = list(token_ids)
    sequence = SequenceState(
        number,
        request_id,
        branch,
        num_prompt,
        len(tokens),
        status,
        computed,
        num_cached,
        num_preemptions,
        parent_id,
        num_forked,
        holds_blocks,
        [BlockTableState(first, list(ids), list(holes)) for first, ids, holes in tables],
    )
    return sequence, tokens
