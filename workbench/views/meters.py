"""`Meters`: an engine's figures, a row for each step, from events alone.

Sums where a rate or a share is wanted of any stretch of steps: the browser divides. Latencies are a
list of their own, each with the row in which it became known. `js/meters.js` reads the columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatchmethod

from workbench import events as ev
from workbench.trace.keyframe import sequences_of
from workbench.trace.status import status_after
from workbench.views.wire import GrowingLog

# Of each step. `computed`: tokens that were run; `made`: tokens that came out. asked, found: prompt
# tokens looked up in the cache, and found there. These are sums from the first step on.
SUMS = ("computed", "made", "asked", "found", "preempted", "drafted", "accepted")
NOW = ("running", "waiting", "paused", "used")
COLUMNS = {
    **{"step": "I", "time": "d", "step_ms": "f"},
    **dict.fromkeys((*SUMS, *NOW), "I"),
    **{"ttft_row": "I", "ttft_ms": "f", "tpot_row": "I", "tpot_ms": "f"},
}


_Turn = (
    ev.SequenceQueued | ev.SequenceAdmitted | ev.SequencePaused | ev.SequenceResumed | ev.Preempted
)


@dataclass(slots=True)
class Live:
    """A sequence that has not ended, for the table of requests."""

    request_id: str
    branch: int
    num_prompt_tokens: int
    came: float
    state: str
    first: float | None = None  # when its first token came, and the latest
    latest: float = 0.0
    num_made: int = 0
    num_timed: int = 0  # of which since the first


class Meters:
    """Takes events with their times; `log` has the rows, `live` the sequences by number."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks  # of the cache
        self.log = GrowingLog(COLUMNS)
        self.live: dict[int, Live] = {}
        self._ending: dict[int, Live] = {}  # ended since the last step
        self._sums = dict.fromkeys(SUMS, 0)
        self._now = 0.0

    @property
    def num_rows(self) -> int:
        """Steps so far."""
        return len(self.log.columns["step"])

    def take(self, events: Iterable[ev.Event], seconds: Iterable[float]) -> None:
        """Take events in, with the time of each."""
        for event, self._now in zip(events, seconds, strict=True):
            self._take(event)

    @singledispatchmethod
    def _take(self, event: ev.Event) -> None:
        """Most kinds say nothing here."""

    @_take.register
    def _(self, event: ev.RequestAdded | ev.SequenceForked) -> None:
        names = event.request_id, event.branch, event.num_prompt_tokens
        self.live[event.sequence_id] = Live(*names, self._now, status_after(event, ""))

    @_take.register
    def _(self, event: _Turn) -> None:
        sequence = self.live.get(event.sequence_id)
        if sequence is not None:  # else it came before the recording began
            sequence.state = status_after(event, sequence.state)
        self._sums["preempted"] += isinstance(event, ev.Preempted)

    @_take.register
    def _(self, event: ev.RequestFinished) -> None:
        sequence = self.live.pop(event.sequence_id, None)
        if sequence is not None:  # its step is told of after it: the last token is still to come
            self._ending[event.sequence_id] = sequence

    @_take.register
    def _(self, event: ev.MemoryRebalanced) -> None:
        self.num_blocks = event.num_blocks

    @_take.register
    def _(self, event: ev.PrefixHit) -> None:
        self._sums["asked"] += event.num_prompt_tokens
        self._sums["found"] += event.num_tokens

    @_take.register
    def _(self, event: ev.PrefixMiss) -> None:
        self._sums["asked"] += event.num_prompt_tokens

    @_take.register
    def _(self, event: ev.DraftVerified) -> None:
        self._sums["drafted"] += len(event.token_ids)
        self._sums["accepted"] += len(event.accepted)

    @_take.register
    def _(self, event: ev.StateSeen) -> None:
        for seen, _ in sequences_of(event):
            names = seen.request_id, seen.branch, seen.num_prompt_tokens
            live = self.live[seen.sequence_id] = Live(*names, self._now, seen.status)
            live.num_made = seen.num_output_tokens

    @_take.register
    def _(self, event: ev.StepPlanned) -> None:
        self._sums["computed"] += sum(num_new for _, _, num_new in event.rows)
        self._planned = event.num_running, event.num_waiting

    @_take.register
    def _(self, event: ev.StepDone) -> None:
        for number, _ in event.tokens:
            self._advance(number)
        for sequence in self._ending.values():
            if sequence.num_timed > 1 and sequence.first is not None:
                each = (sequence.latest - sequence.first) / (sequence.num_timed - 1)
                self._note("tpot", each)
        self._ending.clear()
        self._sums["made"] += len(event.tokens)
        columns = self.log.columns
        running, waiting = self._planned
        paused = sum(sequence.state == "paused" for sequence in self.live.values())
        values = {
            "step": event.step,
            "time": self._now,
            "step_ms": 1e3 * sum(event.seconds.values()),
            "running": running,
            "waiting": waiting,
            "paused": paused,
            "used": self.num_blocks - event.num_free_blocks,
            **self._sums,
        }
        for name, value in values.items():
            columns[name].append(value)

    _planned = 0, 0

    def _advance(self, sequence_id: int) -> None:
        sequence = self.live.get(sequence_id) or self._ending.get(sequence_id)
        if sequence is None:
            return
        if sequence.first is None:
            sequence.first = self._now
            if not sequence.num_made:  # else its first token came before the recording
                self._note("ttft", self._now - sequence.came)
        sequence.latest = self._now
        sequence.num_made += 1
        sequence.num_timed += 1

    def _note(self, kind: str, seconds: float) -> None:
        self.log.columns[f"{kind}_row"].append(self.num_rows)
        self.log.columns[f"{kind}_ms"].append(1e3 * seconds)
