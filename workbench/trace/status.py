"""`status_after`: what a sequence does once an event is told, the same for every reader of events.

Used by replays, by views and by the export to Perfetto. Words are those of `SequenceState.status`.
"""

from __future__ import annotations

from workbench import events
from workbench.events import Event


def status_after(event: Event, before: str) -> str:
    """Return what the event's sequence does from it on. before: what it did until then.

    `compiling` (its grammar), `waiting`, `running`, `paused` or `finished`; `before` where the
    event says nothing of it.
    """
    match event:
        case events.RequestAdded() | events.SequenceQueued():
            return event.state
        case events.SequenceForked():
            return "waiting"  # if it shares its parent's blocks, that it runs is told next
        case events.SequenceAdmitted():
            return "running"
        case events.SequencePaused():
            return "paused"
        case events.SequenceResumed():  # if it runs, that is told next
            return "compiling" if event.compiling else "waiting"
        case events.Preempted() if before == "running":  # a paused one stays so
            return "waiting"
        case events.RequestFinished():
            return "finished"
    return before
