"""`replay`: a trace step by step, and `Timeline`: the state at any step of it, quickly.

A `Timeline` replays a trace once and keeps a copy of the state every few thousand events; `at` goes
on from the nearest one. `replay` also says which blocks each step changed, from what to what, which
is what a view sends to a browser.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from workbench.errors import TraceError
from workbench.events import Event, StepDone
from workbench.trace.apply import apply
from workbench.trace.layout import CacheLayout
from workbench.trace.state import BlockState, ReplayedState

# A copy of the state costs about as much as replaying this many events of a small cache. One of a
# large cache is larger: as many events more as it has blocks, and snapshots take a few dozen bytes
# for each event, whatever the cache.
_EVENTS_BETWEEN_SNAPSHOTS = 4096


class BlockChange(NamedTuple):
    """What a step, and whatever was done since the step before, did to a block."""

    block_id: int
    before: BlockState
    after: BlockState


class ReplayedStep(NamedTuple):
    """One committed step of a trace.

    events: the places of its events in the trace, those since the step before included. changes:
    the blocks that look different now, by number.
    """

    step: int
    events: range
    changes: list[BlockChange]


class BlockDiff:
    """Remembers how each block looked; `changes` says what is different since it was last asked."""

    def __init__(self, layout: CacheLayout) -> None:
        """Begin with blank blocks."""
        self._seen = [
            BlockState(place, 0, (), 0, 0, None, None)
            for place, group in enumerate(layout.groups)
            for _ in range(group.num_blocks)
        ]

    def changes(self, state: ReplayedState) -> list[BlockChange]:
        """Return what is different, and clear the state's `touched`."""
        found = []
        for block_id in sorted(state.touched):
            before, after = self._seen[block_id], state.block(block_id)
            if before != after:
                found.append(BlockChange(block_id, before, after))
                self._seen[block_id] = after
        state.touched.clear()
        return found


def replay(
    events: Sequence[Event], layout: CacheLayout
) -> Iterator[tuple[ReplayedState, ReplayedStep]]:
    """Yield the state after each committed step, and what the step changed.

    It is one state, changed in place: read it before you go on, or keep a `copy()`.
    """
    state, diff, begin = ReplayedState(layout), BlockDiff(layout), 0
    for place, event in enumerate(events):
        apply(state, event)
        if isinstance(event, StepDone):
            yield state, ReplayedStep(event.step, range(begin, place + 1), diff.changes(state))
            begin = place + 1


class Timeline:
    """The states of a list of events, which may still grow."""

    def __init__(self, events: Sequence[Event], layout: CacheLayout) -> None:
        """Replay nothing yet: that is done when somebody asks."""
        self.events, self.layout = events, layout
        self.steps: list[int] = []  # committed, in order
        self._ends: list[int] = []  # of each, the place after its last event
        self._state = ReplayedState(layout)  # after the first `_done` events
        self._done = 0
        self._snapshots: list[tuple[int, ReplayedState]] = [(0, self._state.copy())]
        self._between = _EVENTS_BETWEEN_SNAPSHOTS + layout.num_blocks + layout.num_slots

    def extend(self) -> None:
        """Take in the events that came since it was last asked."""
        state, events = self._state, self.events
        for place in range(self._done, len(events)):
            event = events[place]
            apply(state, event)
            self._done = place + 1
            if isinstance(event, StepDone):
                self.steps.append(event.step)
                self._ends.append(place + 1)
                if place + 1 - self._snapshots[-1][0] >= self._between:
                    state.touched.clear()
                    self._snapshots.append((place + 1, state.copy()))

    def at(self, step: int) -> ReplayedState:
        """Return the state right after a step was committed; 0: before the first event.

        Raises `TraceError` for a step that the trace does not have.
        """
        self.extend()
        return self.after(self.end_of(step))

    def end_of(self, step: int) -> int:
        """Return the place after a step's last event; `TraceError` if it is not in the trace."""
        self.extend()
        found = bisect_right(self.steps, step)
        if found and self.steps[found - 1] == step:
            return self._ends[found - 1]
        known = f"{self.steps[0]} to {self.steps[-1]}" if self.steps else "none"
        between = bool(self.steps) and self.steps[0] < step < self.steps[-1]
        why = "was planned and never committed" if between else "is not in the trace"
        raise TraceError(f"step {step} {why}. Committed steps: {known}; see `trace.steps`.")

    def after(self, count: int) -> ReplayedState:
        """Return the state after the first `count` events."""
        places = [place for place, _ in self._snapshots]
        place, snapshot = self._snapshots[bisect_right(places, count) - 1]
        state = snapshot.copy()
        for event in self.events[place:count]:
            apply(state, event)
        state.touched.clear()
        return state
