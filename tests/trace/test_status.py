"""What a sequence does after an event: one answer, whoever asks."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from workbench import events
from workbench.events import Event
from workbench.trace import CacheLayout, GroupLayout, ReplayedState, Trace, apply
from workbench.trace.status import status_after
from workbench.views.lane import State
from workbench.views.meters import Meters
from workbench.views.run_writer import RunWriter

ADDED = events.RequestAdded(0, "a", 1, 2, 9, (5, 6), state="compiling")
RUN = [
    (ADDED, "compiling"),
    (events.SequencePaused(0, 1), "paused"),
    (events.SequenceResumed(0, 1, False, True), "compiling"),
    (events.SequenceQueued(0, 1, "waiting"), "waiting"),
    (events.PrefixMiss(1, 1, 2, "new", "new"), "waiting"),
    (events.SequenceAdmitted(1, 1, 0), "running"),
    (events.SequencePaused(1, 1), "paused"),
    (events.Preempted(1, 1, "no room", 2), "paused"),
    (events.SequenceResumed(1, 1, False), "waiting"),
    (events.SequenceAdmitted(2, 1, 0), "running"),
    (events.Preempted(2, 1, "no room", 2), "waiting"),
    (events.SequenceAdmitted(3, 1, 0), "running"),
]


def test_each_event_says_what_its_sequence_does() -> None:
    before = ""
    for event, after in RUN:
        before = status_after(event, before)
        assert before == after, event
    assert status_after(events.RequestFinished(4, "a", 1, "stop", 0), before) == "finished"


@pytest.mark.parametrize("count", range(1, len(RUN) + 1))
def test_replay_figures_and_columns_say_the_same(count: int) -> None:
    told: list[Event] = [event for event, _ in RUN[:count]]
    replayed = ReplayedState(CacheLayout(4, (GroupLayout(0, 8),)))
    meters, writer = Meters(8), RunWriter()
    for event in told:
        apply(replayed, event)
        writer.take(event, 0.0)
    meters.take(told, [0.0] * count)
    status = RUN[count - 1][1]
    assert replayed.sequences[1].status == meters.live[1].state == status
    state = writer.lanes[0].state
    assert state is not None
    shown = {State.PREEMPTED: "waiting"}.get(state, state.name.lower())
    assert shown == status


def test_perfetto_has_a_slice_for_each_state(tmp_path: Path) -> None:
    trace = Trace()
    for event, _ in RUN:
        trace(event)
    written = json.loads(trace.to_perfetto(tmp_path / "run.json").read_text())
    slices = [record["name"] for record in written["traceEvents"] if record["ph"] == "X"]
    assert slices == [status for status, _ in groupby(after for _, after in RUN)]
