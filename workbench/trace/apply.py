"""`apply`: takes one event into a `ReplayedState`.

What each kind changes is in `sequence_changes`, `block_changes` and `host_changes`. They mirror
what the engine's parts do and decide nothing: whatever follows from a change is told as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.errors import TraceError
from workbench.events import Event, StateSeen
from workbench.trace import block_changes, host_changes, sequence_changes
from workbench.trace.keyframe import load
from workbench.trace.state import ReplayedState

_CHANGES: dict[type[Event], Callable[[ReplayedState, Any], None]] = {
    **sequence_changes.CHANGES,
    **block_changes.CHANGES,
    **host_changes.CHANGES,
    StateSeen: load,
}


def apply(state: ReplayedState, event: Event) -> None:
    """Take one event in; `TraceError` if it does not fit what came before."""
    change = _CHANGES.get(type(event))
    if change is None:
        return
    if state.step_is_over:
        state.step_is_over = False
        state.finished.clear()
    try:
        change(state, event)
    except (KeyError, IndexError, ValueError) as error:
        raise TraceError(
            f"{event!r} does not follow from the events before it ({error!r}). "
            "Record the whole of it with `Trace.record(engine)`."
        ) from error
