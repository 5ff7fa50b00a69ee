"""`RunLog`: what a trace says of sequences, steps, batches and drafts, written down as columns.

One for all views of a trace. It needs no state of the cache; what it follows of each sequence is in
`Lane`. The columns are explained in `run_columns`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from math import nan
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from workbench import events
from workbench.trace import ReplayedState, Trace, apply
from workbench.views.lane import How, Lane, State
from workbench.views.run_columns import GROUPS, PARTS
from workbench.views.wire import GrowingLog

_LOGS: WeakValueDictionary[int, RunLog] = WeakValueDictionary()


class _Draft(NamedTuple):
    proposer: int
    drafted: int
    accepted: int


_NO_DRAFT = _Draft(0, 0, 0)


class RunLog:
    """lanes: a sequence each, in the order they came. logs: by group, what is sent; columns and
    lists: those of all groups by name."""

    def __init__(self, trace: Trace) -> None:
        """Read nothing yet."""
        self.trace = trace
        self.lanes: list[Lane] = []
        self.logs = {group: GrowingLog(*names) for group, names in GROUPS.items()}
        self.columns = {k: v for log in self.logs.values() for k, v in log.columns.items()}
        self.lists = {k: v for log in self.logs.values() for k, v in log.lists.items()}
        self._explained: dict[str, int] = {}  # by column of token ids: how many were looked at
        self._unknown: set[int] = set()
        self._numbers: dict[str, dict[str, int]] = {"causes": {}, "proposers": {}}
        self._name("causes", "")
        self._name("proposers", "")
        self._latest: dict[int, Lane] = {}  # by sequence id
        self._plan: events.StepPlanned | None = None
        self._drafts: dict[int, _Draft] = {}  # of the step under way, by sequence id
        self._first_row = [0]  # of each step, and one more
        self._places: list[list[int]] = []  # of the tokens of each lane
        self._num_sorted = 0
        self._num_read = 0
        self._now = 0.0

    @classmethod
    def of(cls, trace: Trace) -> RunLog:
        """Return the log of a trace, the same one for all its views."""
        log = _LOGS.get(id(trace))  # whoever holds the log holds the trace
        if log is None:
            log = _LOGS[id(trace)] = cls(trace)
        return log

    def read(self) -> None:
        """Take in what the trace has got since."""
        trace = self.trace
        for place in range(self._num_read, len(trace.seconds)):  # an event comes before its time
            self._num_read = place + 1
            self._now = trace.seconds[place]
            take = _TAKES.get(type(trace.events[place]))
            if take is not None:
                take(self, trace.events[place])
        self._explain("token_id", "top_id", "node_token", "draft_bonus")

    def _explain(self, *columns: str) -> None:
        """Write down the texts of token ids that were met; ask again for those nobody knows yet."""
        known = set(self.columns["known_ids"])
        for name in columns:
            self._unknown.update(self.columns[name][self._explained.get(name, 0) :])
            self._explained[name] = len(self.columns[name])
        for token_id in sorted(self._unknown - known):
            text = self.trace.text_of(token_id)
            if text is not None:
                self.columns["known_ids"].append(token_id)
                self.lists["known_texts"].append(text)
        self._unknown.difference_update(self.columns["known_ids"])

    # --- reading ------------------------------------------------------------------------------

    @property
    def num_columns(self) -> int:
        """How many steps were committed."""
        return len(self.columns["step_number"])

    @property
    def bounds(self) -> tuple[int, int]:
        """The first and the last committed step; zeros before one."""
        numbers = self.columns["step_number"]
        return (numbers[0], numbers[-1]) if numbers else (0, 0)

    def column_of(self, step: int) -> int | None:
        """Return the column of the last step that is not after `step`; None before the first."""
        found = bisect_right(self.columns["step_number"], step)
        return found - 1 if found else None

    def rows_of(self, column: int) -> range:
        """Return the places of a step's rows."""
        while len(self._first_row) <= self.num_columns:
            self._first_row.append(
                self._first_row[-1] + self.columns["step_rows"][len(self._first_row) - 1]
            )
        return range(self._first_row[column], self._first_row[column + 1])

    def token_places(self, lane: Lane) -> list[int]:
        """Return the places in the token columns of a lane's tokens, by position."""
        parent, forked = self.columns["lane_parent"], self.columns["lane_forked"]
        self._sort_tokens()
        own = self._places[lane.number]
        if parent[lane.number] < 0:
            return own
        first = self.token_places(self.lanes[parent[lane.number]])
        return [*first[: forked[lane.number]], *own]

    def _sort_tokens(self) -> None:
        lanes = self.columns["token_lane"]
        self._places.extend([] for _ in range(len(self.lanes) - len(self._places)))
        for place in range(self._num_sorted, len(lanes)):
            self._places[lanes[place]].append(place)
        self._num_sorted = len(lanes)

    # --- lanes --------------------------------------------------------------------------------

    def _name(self, kind: str, text: str) -> int:
        numbers = self._numbers[kind]
        if text not in numbers:
            numbers[text] = len(numbers)
            self.lists[kind].append(text)
        return numbers[text]

    def _write(self, group: str, **values: float) -> None:
        for name, value in values.items():
            self.columns[f"{group}_{name}"].append(value)

    def _lane(self, sequence_id: int) -> Lane:
        """Return a sequence's lane; of one that came before a bus was listened to, a bare one."""
        if sequence_id not in self._latest:
            self._enter(sequence_id, f"sequence {sequence_id}", 0, 0, 0, State.RUNNING)
        return self._latest[sequence_id]

    def _enter(
        self,
        sequence_id: int,
        request_id: str,
        branch: int,
        num_prompt: int,
        max_tokens: int,
        state: State,
        parent: Lane | None = None,
        forked: int = 0,
    ) -> Lane:
        lane = Lane(len(self.lanes), sequence_id, request_id, branch, num_prompt, forked)
        self.lanes.append(lane)
        self._latest[sequence_id] = lane
        origin = -1 if parent is None else parent.number
        sizes = {"prompt": num_prompt, "max": max_tokens, "parent": origin, "forked": forked}
        self._write("lane", sequence=sequence_id, branch=branch, **sizes)
        self.lists["requests"].append(request_id)
        self._turn(lane, state)
        return lane

    def _turn(self, lane: Lane, state: State, cause: str = "", other: int = -1) -> None:
        """Note that a lane's state is another one from the next step on."""
        if lane.state is state and not cause:
            return
        lane.state = state
        when = {"column": self.num_columns, "seconds": self._now}
        note = self._name("causes", cause)
        self._write("change", lane=lane.number, **when, state=state, cause=note, other=other)

    def _tokens(self, lane: Lane, token_ids: Iterable[int]) -> None:
        """Take in tokens that a lane has from its start."""
        for token_id in token_ids:
            prompt = lane.num_tokens < lane.num_prompt_tokens
            self._token(lane, token_id, -1, How.PROMPT if prompt else How.BROUGHT)

    def _token(
        self,
        lane: Lane,
        token_id: int,
        column: int,
        how: How,
        proposer: int = 0,
        logprob: float = nan,
        top: Iterable[tuple[int, float]] = (),
    ) -> None:
        place = len(self.columns["token_id"])
        for other, value in top:
            self._write("top", token=place, id=other, logprob=value)
        origin = {"how": how, "proposer": proposer, "logprob": logprob}
        self._write("token", lane=lane.number, id=token_id, column=column, **origin)
        lane.num_tokens += 1

    def added(self, event: events.RequestAdded) -> None:
        """Open a lane, unless `SequenceForked` has."""
        known = self._latest.get(event.sequence_id)
        if known is not None and known.state is not State.ENDED:
            return
        ids = event.sequence_id, event.request_id, event.branch
        sizes = event.num_prompt_tokens, event.max_tokens
        self._tokens(self._enter(*ids, *sizes, _STATES[event.state]), event.token_ids)

    def forked(self, event: events.SequenceForked) -> None:
        """Open a lane that begins as another one."""
        parent = self._lane(event.parent_id)
        ids = event.sequence_id, event.request_id, event.branch
        sizes = event.num_prompt_tokens, 0
        lane = self._enter(*ids, *sizes, State.WAITING, parent, event.num_tokens)
        lane.furthest = min(parent.furthest, event.num_tokens)
        lane.admitted = parent.admitted
        self._tokens(lane, event.token_ids)

    def seen(self, event: events.StateSeen) -> None:
        """Open a lane for each sequence there was when the recording began."""
        state = ReplayedState(self.trace.layout)
        apply(state, event)
        for sequence in state.sequences.values():
            ids = sequence.sequence_id, sequence.request_id, sequence.branch
            lane = self._enter(*ids, sequence.num_prompt_tokens, 0, _STATES[sequence.status])
            lane.furthest, lane.admitted = sequence.num_computed, sequence.num_cached is not None
            self._tokens(lane, state.token_ids(sequence.sequence_id))

    def extended(self, event: events.SequenceExtended) -> None:
        """Take in a token that beam search chose after the last step."""
        lane, column = self._lane(event.sequence_id), self.num_columns - 1
        self._token(lane, event.token_id, column, How.CHOSEN, logprob=event.logprob)

    def changed(self, event: Any) -> None:
        """Take in a change of state."""
        lane = self._lane(event.sequence_id)
        match event:
            case events.SequenceAdmitted(num_computed=computed):
                if not lane.admitted:
                    lane.admitted = True
                    self._write("cached", lane=lane.number, tokens=computed)
                lane.furthest = max(lane.furthest, computed)
                self._turn(lane, State.RUNNING)
            case events.Preempted():
                paused, swapped = lane.state is State.PAUSED, event.kind == "swap"
                fate = "kept on the host" if swapped else "to be computed again"
                cause = f"{event.cause}; KV of {event.num_computed} tokens {fate}"
                self._turn(lane, State.PAUSED if paused else State.PREEMPTED, cause)
            case events.PrefixAwaited():
                if lane.state is not State.AWAITING_PREFIX:  # it is told at every step
                    leader = self._lane(event.leader_id)
                    cause = f"{leader.name} computes {event.num_tokens} tokens that both begin with"
                    self._turn(lane, State.AWAITING_PREFIX, cause, leader.number)
            case events.RequestFinished():
                self._turn(lane, State.ENDED, event.reason)
            case events.SequencePaused():
                self._turn(lane, State.PAUSED)
            case events.SequenceQueued() | events.SequenceResumed():
                self._turn(lane, State.WAITING)  # if it runs, that is told next

    # --- steps --------------------------------------------------------------------------------

    def planned(self, event: events.StepPlanned) -> None:
        """Keep a plan until it is committed."""
        self._plan = event
        self._drafts.clear()

    def verified(self, event: events.DraftVerified) -> None:
        """Take in a draft of the step under way."""
        lane, proposer = self._lane(event.sequence_id), self._name("proposers", event.proposer)
        count, accepted = len(event.token_ids), set(event.accepted)
        self._drafts[event.sequence_id] = _Draft(proposer, count, len(accepted))
        where = {"lane": lane.number, "column": self.num_columns, "at": lane.num_tokens}
        self._write("draft", **where, proposer=proposer, bonus=event.bonus_token_id, nodes=count)
        nodes = zip(
            event.token_ids, event.parents, event.probabilities or [nan] * count, strict=True
        )
        for place, (token, parent, likely) in enumerate(nodes):
            path = {"parent": parent, "accepted": place in accepted}
            self._write("node", token=token, **path, probability=likely)

    def done(self, event: events.StepDone) -> None:
        """Take in a committed step: its tokens, then its rows."""
        plan, column = self._plan, self.num_columns
        if plan is None or plan.step != event.step:
            return  # the recording began in the middle of this step
        before = {number: self._lane(number).num_tokens for number, _, _ in plan.rows}
        told = event.logprobs or (None,) * len(event.tokens)
        for (number, token_id), entry in zip(event.tokens, told, strict=True):
            lane, draft = self._lane(number), self._drafts.get(number, _NO_DRAFT)
            drafted = lane.num_tokens - before[number] < draft.accepted
            how, proposer = (How.DRAFTED, draft.proposer) if drafted else (How.SAMPLED, 0)
            self._token(lane, token_id, column, how, proposer, *(entry or ()))
        for number, start, num_new in plan.rows:
            self._row(self._lane(number), start, num_new, before[number])
        self._step(event, plan)
        self._plan = None

    def _row(self, lane: Lane, start: int, num_new: int, at: int) -> None:
        draft = self._drafts.get(lane.sequence_id, _NO_DRAFT)
        work = lane.work(start, num_new, draft.drafted)
        self._write("row", lane=lane.number, start=start, num=num_new, work=work)
        self._write("row", at=at, made=lane.num_tokens - at)
        self._write("row", drafted=draft.drafted, accepted=draft.accepted)
        lane.furthest = max(lane.furthest, start + num_new - draft.drafted + draft.accepted)

    def _step(self, done: events.StepDone, plan: events.StepPlanned) -> None:
        device = nan if done.device_seconds is None else done.device_seconds
        sizes = {"rows": len(plan.rows), "waiting": plan.num_waiting, "running": plan.num_running}
        self._write("step", end=self._now, **sizes, free=done.num_free_blocks, device=device)
        self._write("step", **{part: done.seconds.get(part, 0.0) for part in PARTS})
        others = [seconds for part, seconds in done.seconds.items() if part not in PARTS]
        self._write("step", other=sum(others), number=done.step)


_STATES = {
    "compiling": State.COMPILING,
    "waiting": State.WAITING,
    "running": State.RUNNING,
    "paused": State.PAUSED,
}
_CHANGES = (
    events.SequenceAdmitted,
    events.SequencePaused,
    events.SequenceQueued,
    events.SequenceResumed,
    events.Preempted,
    events.PrefixAwaited,
    events.RequestFinished,
)
_TAKES: dict[type[events.Event], Callable[[RunLog, Any], None]] = {
    events.RequestAdded: RunLog.added,
    events.SequenceForked: RunLog.forked,
    events.StateSeen: RunLog.seen,
    events.SequenceExtended: RunLog.extended,
    events.StepPlanned: RunLog.planned,
    events.DraftVerified: RunLog.verified,
    events.StepDone: RunLog.done,
    **dict.fromkeys(_CHANGES, RunLog.changed),
}
