"""What events of sequences and steps change in a `ReplayedState`: who is where, how far, and with
which tokens.

Mirrors the scheduler's queues and its commit. Found through `CHANGES`, by the event's class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench import events
from workbench.trace.host_changes import drop_kept
from workbench.trace.state import BlockTableState, ReplayedState, SequenceState
from workbench.trace.status import status_after

Turn = events.SequenceQueued | events.SequenceResumed


def _enter(state: ReplayedState, sequence: SequenceState, token_ids: list[int]) -> None:
    sequence.tables = [BlockTableState() for _ in state.layout.groups]
    state.sequences[sequence.sequence_id] = sequence
    state.tokens.setdefault(sequence.sequence_id, token_ids)


def _request_added(state: ReplayedState, event: events.RequestAdded) -> None:
    if event.sequence_id in state.sequences:
        return  # a twin: `SequenceForked` told of it
    sequence = SequenceState(
        event.sequence_id,
        event.request_id,
        event.branch,
        event.num_prompt_tokens,
        len(event.token_ids),
        status_after(event, ""),
        num_cached=event.num_cached,
        num_preemptions=event.num_preemptions,
    )
    _enter(state, sequence, list(event.token_ids))


def _turned(state: ReplayedState, event: Turn) -> None:
    sequence = state.sequences[event.sequence_id]
    sequence.status = status_after(event, sequence.status)


def _sequence_forked(state: ReplayedState, event: events.SequenceForked) -> None:
    parent, shared = state.find(event.parent_id), event.num_tokens
    sequence = SequenceState(
        event.sequence_id,
        event.request_id,
        event.branch,
        event.num_prompt_tokens,
        shared + len(event.token_ids),
        status_after(event, ""),
        num_cached=parent.num_cached,
        parent_id=event.parent_id,
        num_forked=shared,
    )
    _enter(state, sequence, [*state.tokens[event.parent_id][:shared], *event.token_ids])


def _append(state: ReplayedState, sequence_id: int, token_id: int) -> None:
    sequence, known = state.find(sequence_id), state.tokens[sequence_id]
    if sequence.num_tokens == len(known):  # else it is known from an earlier replay
        known.append(token_id)
    sequence.num_tokens += 1


def _sequence_extended(state: ReplayedState, event: events.SequenceExtended) -> None:
    _append(state, event.sequence_id, event.token_id)


def _looked_up(state: ReplayedState, event: events.PrefixHit | events.PrefixMiss) -> None:
    sequence = state.sequences[event.sequence_id]
    if sequence.num_cached is None:
        sequence.num_cached = event.num_tokens if isinstance(event, events.PrefixHit) else 0


def _sequence_admitted(state: ReplayedState, event: events.SequenceAdmitted) -> None:
    sequence = state.sequences[event.sequence_id]
    sequence.status, sequence.holds_blocks = status_after(event, sequence.status), True
    sequence.num_computed = event.num_computed
    state.running[event.sequence_id] = sequence


def _sequence_paused(state: ReplayedState, event: events.SequencePaused) -> None:
    state.running.pop(event.sequence_id, None)
    sequence = state.sequences[event.sequence_id]
    sequence.status = status_after(event, sequence.status)


def _preempted(state: ReplayedState, event: events.Preempted) -> None:
    sequence = state.sequences[event.sequence_id]
    state.running.pop(event.sequence_id, None)
    sequence.status = status_after(event, sequence.status)
    sequence.num_computed, sequence.holds_blocks = 0, False
    sequence.num_preemptions += 1
    _forget_holes(sequence)


def _request_finished(state: ReplayedState, event: events.RequestFinished) -> None:
    state.running.pop(event.sequence_id, None)
    sequence = state.finished[event.sequence_id] = state.sequences.pop(event.sequence_id)
    sequence.status = status_after(event, sequence.status)
    sequence.finish_reason = event.reason
    sequence.holds_blocks = False
    _forget_holes(sequence)
    drop_kept(state, event.sequence_id)


def _forget_holes(sequence: SequenceState) -> None:
    """Forget what a table lacks that has no block left: no block's release will say so."""
    for table in sequence.tables:
        if not table.block_ids:
            table.holes.clear()


def _step_planned(state: ReplayedState, event: events.StepPlanned) -> None:
    state.rows = event.rows


def _step_done(state: ReplayedState, event: events.StepDone) -> None:
    size = state.layout.block_size
    for (number, start, _), computed in zip(state.rows, event.num_computed, strict=True):
        sequence = state.find(number)
        sequence.num_computed = computed
        for table in sequence.tables:  # of one that has ended they are empty
            begin, end = table.place(start // size), table.place(-(-computed // size))
            state.touched.update(table.block_ids[max(0, begin) : max(0, end)])
    for number, token_id in event.tokens:
        _append(state, number, token_id)
    state.step, state.step_is_over = event.step, True


CHANGES: dict[type[events.Event], Callable[[ReplayedState, Any], None]] = {
    events.RequestAdded: _request_added,
    events.SequenceQueued: _turned,
    events.SequenceForked: _sequence_forked,
    events.SequenceExtended: _sequence_extended,
    events.PrefixHit: _looked_up,
    events.PrefixMiss: _looked_up,
    events.SequenceAdmitted: _sequence_admitted,
    events.SequencePaused: _sequence_paused,
    events.SequenceResumed: _turned,
    events.Preempted: _preempted,
    events.RequestFinished: _request_finished,
    events.StepPlanned: _step_planned,
    events.StepDone: _step_done,
}
