"""`RunWriter`: takes events in order and writes down sequences, steps, batches and drafts.

Called by `RunLog`. It needs no state of the cache; what it follows of a sequence is in `Lane`. The
columns are explained in `run_columns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import nan
from typing import Any, NamedTuple

from workbench import events
from workbench.trace.keyframe import sequences_of
from workbench.trace.status import status_after
from workbench.views.lane import Lane, Maker, State
from workbench.views.run_columns import GROUPS, KINDS, PARTS
from workbench.views.wire import GrowingLog


class _Draft(NamedTuple):
    proposer: int
    drafted: int
    accepted: int


_NO_DRAFT = _Draft(0, 0, 0)


class RunWriter:
    """lanes, logs, columns, lists: see `RunLog`."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.logs = {group: GrowingLog(*names) for group, names in GROUPS.items()}
        self.columns = {k: v for log in self.logs.values() for k, v in log.columns.items()}
        self.lists = {k: v for log in self.logs.values() for k, v in log.lists.items()}
        self._appends = {
            kind: [self.columns[name].append for name in names] for kind, names in KINDS.items()
        }
        self._numbers: dict[str, dict[str, int]] = {"causes": {}, "proposers": {}}
        self._name("causes", "")
        self._name("proposers", "")
        self._latest: dict[int, Lane] = {}  # by sequence id
        self._plan: events.StepPlanned | None = None
        self._drafts: dict[int, _Draft] = {}  # of the step under way, by sequence id
        self._now = 0.0

    def take(self, event: events.Event, seconds: float) -> None:
        """Write down what an event says, that came at a time of the trace."""
        self._now = seconds
        take = _TAKES.get(type(event))
        if take is not None:
            take(self, event)

    @property
    def num_columns(self) -> int:
        """How many steps were committed."""
        return len(self.columns["step_number"])

    # --- lanes --------------------------------------------------------------------------------

    def _name(self, kind: str, text: str) -> int:
        numbers = self._numbers[kind]
        if text not in numbers:
            numbers[text] = len(numbers)
            self.lists[kind].append(text)
        return numbers[text]

    def _put(self, kind: str, *values: float) -> None:
        """Append an entry; values are in the order of the columns of its kind."""
        for append, value in zip(self._appends[kind], values, strict=True):
            append(value)

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
        self._put("lane", sequence_id, branch, num_prompt, max_tokens, origin, forked)
        self.lists["requests"].append(request_id)
        self._turn(lane, state)
        return lane

    def _turn(self, lane: Lane, state: State, cause: str = "", other: int = -1) -> None:
        """Note that a lane's state is another one from the next step on."""
        if lane.state is state and not cause:
            return
        lane.state = state
        note = self._name("causes", cause)
        self._put("change", lane.number, self.num_columns, self._now, state, note, other)

    def _tokens(self, lane: Lane, token_ids: Sequence[int]) -> None:
        """Take in tokens that a lane has from its start: prompt, then what it brings along."""
        count = len(token_ids)
        prompt = max(0, min(count, lane.num_prompt_tokens - lane.num_tokens))
        maker = bytes([Maker.PROMPT]) * prompt + bytes([Maker.BROUGHT]) * (count - prompt)
        columns = self.columns
        columns["token_lane"].extend([lane.number] * count)
        columns["token_id"].extend(token_ids)
        columns["token_column"].extend([-1] * count)
        columns["token_maker"].frombytes(maker)
        columns["token_proposer"].frombytes(bytes(count))
        columns["token_logprob"].extend([nan] * count)
        lane.num_tokens += count

    def _token(
        self,
        lane: Lane,
        token_id: int,
        column: int,
        maker: Maker,
        proposer: int = 0,
        logprob: float = nan,
        top: Iterable[tuple[int, float]] = (),
    ) -> None:
        place = len(self.columns["token_id"])
        for other, value in top:
            self._put("top", place, other, value)
        self._put("token", lane.number, token_id, column, maker, proposer, logprob)
        lane.num_tokens += 1

    def added(self, event: events.RequestAdded) -> None:
        """Open a lane, unless `SequenceForked` has."""
        known = self._latest.get(event.sequence_id)
        if known is not None and known.state is not State.ENDED:
            return
        ids = event.sequence_id, event.request_id, event.branch
        sizes = event.num_prompt_tokens, event.max_tokens
        state = _STATES[status_after(event, "")]
        self._tokens(self._enter(*ids, *sizes, state), event.token_ids)

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
        for sequence, token_ids in sequences_of(event):
            ids = sequence.sequence_id, sequence.request_id, sequence.branch
            lane = self._enter(*ids, sequence.num_prompt_tokens, 0, _STATES[sequence.status])
            lane.furthest, lane.admitted = sequence.num_computed, sequence.num_cached is not None
            self._tokens(lane, token_ids)

    def extended(self, event: events.SequenceExtended) -> None:
        """Take in a token that beam search chose after the last step."""
        lane, column = self._lane(event.sequence_id), self.num_columns - 1
        self._token(lane, event.token_id, column, Maker.CHOSEN, logprob=event.logprob)

    def changed(self, event: Any) -> None:
        """Take in a change of state."""
        lane = self._lane(event.sequence_id)
        match event:
            case events.SequenceAdmitted(num_computed=computed):
                if not lane.admitted:
                    lane.admitted = True
                    self._put("cached", lane.number, computed)
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
            case _:
                self._turn(lane, _STATES[status_after(event, "")])

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
        self._put(
            "draft",
            lane.number,
            self.num_columns,
            lane.num_tokens,
            proposer,
            event.bonus_token_id,
            count,
        )
        columns = self.columns
        columns["node_token"].extend(event.token_ids)
        columns["node_parent"].extend(event.parents)
        columns["node_accepted"].extend([node in accepted for node in range(count)])
        columns["node_probability"].extend(event.probabilities or [nan] * count)

    def done(self, event: events.StepDone) -> None:
        """Take in a committed step: its tokens, then its rows."""
        plan, column = self._plan, self.num_columns
        if plan is None:
            return  # the recording began in the middle of this step
        before = {number: self._lane(number).num_tokens for number, _, _ in plan.rows}
        told = event.logprobs or (None,) * len(event.tokens)
        for place, ((number, token_id), entry) in enumerate(zip(event.tokens, told, strict=True)):
            lane, draft = self._lane(number), self._drafts.get(number, _NO_DRAFT)
            drafted = lane.num_tokens - before[number] < draft.accepted
            own = Maker.FORCED if place in event.forced else Maker.SAMPLED
            maker, proposer = (Maker.DRAFTED, draft.proposer) if drafted else (own, 0)
            self._token(lane, token_id, column, maker, proposer, *(entry or ()))
        for number, start, num_new in plan.rows:
            self._row(self._lane(number), start, num_new, before[number])
        self._step(event, plan)
        self._plan = None

    def _row(self, lane: Lane, start: int, num_new: int, at: int) -> None:
        draft = self._drafts.get(lane.sequence_id, _NO_DRAFT)
        work = lane.work(start, num_new, draft.drafted)
        made = lane.num_tokens - at
        sizes = draft.drafted, draft.accepted
        self._put("row", lane.number, start, num_new, work, at, made, *sizes)
        lane.furthest = max(lane.furthest, start + num_new - draft.drafted + draft.accepted)

    def _step(self, done: events.StepDone, plan: events.StepPlanned) -> None:
        sizes = len(plan.rows), plan.num_waiting, plan.num_running, done.num_free_blocks
        device = nan if done.device_seconds is None else done.device_seconds
        parts = [done.seconds.get(part, 0.0) for part in PARTS]
        other = sum(seconds for part, seconds in done.seconds.items() if part not in PARTS)
        self._put("step", done.step, self._now, *sizes, device, *parts, other)


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
_TAKES: dict[type[events.Event], Callable[[RunWriter, Any], None]] = {
    events.RequestAdded: RunWriter.added,
    events.SequenceForked: RunWriter.forked,
    events.StateSeen: RunWriter.seen,
    events.SequenceExtended: RunWriter.extended,
    events.StepPlanned: RunWriter.planned,
    events.DraftVerified: RunWriter.verified,
    events.StepDone: RunWriter.done,
    **dict.fromkeys(_CHANGES, RunWriter.changed),
}
