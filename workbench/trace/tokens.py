"""Where each generated token came from: step, log-probability, and who made it.

Read off a trace's events in one pass, for views and comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from workbench.events import (
    DraftVerified,
    Event,
    RequestAdded,
    RequestFinished,
    SequenceExtended,
    SequenceForked,
    StateSeen,
    StepDone,
)
from workbench.trace.keyframe import sequences_of


class TokenFact(NamedTuple):
    """One generated token.

    step: which made it (None: before the trace began, or in a run that was left behind). maker:
    `sampled`, `forced` (the only one its grammar allowed), `drafted` (by `proposer`, accepted),
    `chosen` (by beam search) or `brought`. top: the likeliest
    tokens with their log-probabilities, where asked. sequence_id: in which it was made; a fork
    shares its parent's first tokens.
    """

    token_id: int
    step: int | None
    maker: str
    sequence_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    proposer: str | None = None


@dataclass(slots=True)
class SequenceLog:
    """All that a trace says of one sequence's tokens.

    tokens: what was generated, in order. added, finished and `seconds`, of each token: in the
    trace. finish_reason: None while it has not ended.
    """

    sequence_id: int
    request_id: str
    branch: int
    prompt_token_ids: tuple[int, ...]
    parent_id: int | None = None
    tokens: list[TokenFact] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    added: float = 0.0
    finished: float | None = None
    finish_reason: str | None = None

    @property
    def token_ids(self) -> list[int]:
        """The generated token ids."""
        return [token.token_id for token in self.tokens]

    @property
    def ttft(self) -> float | None:
        """Seconds from its arrival to its first token, as far as both are in the trace."""
        return self.seconds[0] - self.added if self.seconds else None

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the first; None before it has two."""
        if len(self.seconds) < 2:
            return None
        return (self.seconds[-1] - self.seconds[0]) / (len(self.seconds) - 1)


def sequence_logs(events: Sequence[Event], seconds: Iterable[float]) -> dict[int, SequenceLog]:
    """Return every sequence of a trace by id, as it came. seconds: of each event."""
    logs = _Logs()
    for now, event in zip(seconds, events, strict=True):
        logs.take(event, now)
    return logs.by_id


class _Logs:
    """The logs so far, and the drafts verified in the step under way."""

    def __init__(self) -> None:
        self.by_id: dict[int, SequenceLog] = {}
        self._latest: dict[tuple[str, int], SequenceLog] = {}  # by request and branch
        self._drafts: dict[int, DraftVerified] = {}

    def take(self, event: Event, now: float) -> None:
        """Take in one event."""
        match event:
            case StepDone():
                self._step_done(event, now)
            case DraftVerified():
                self._drafts[event.sequence_id] = event
            case SequenceExtended():
                made = TokenFact(event.token_id, event.step, "chosen", event.sequence_id)
                self._append(event.sequence_id, made._replace(logprob=event.logprob), now)
            case SequenceForked():
                self._fork(event, now)
            case RequestAdded() if event.sequence_id not in self.by_id:
                ids = event.sequence_id, event.request_id, event.branch
                self._enter(*ids, event.num_prompt_tokens, event.token_ids, now)
            case RequestFinished() if event.sequence_id in self.by_id:
                log = self.by_id[event.sequence_id]
                log.finished, log.finish_reason = now, event.reason
            case StateSeen():
                for sequence, token_ids in sequences_of(event):
                    names = sequence.sequence_id, sequence.request_id, sequence.branch
                    self._enter(*names, sequence.num_prompt_tokens, tuple(token_ids), now)

    def _enter(
        self,
        number: int,
        request_id: str,
        branch: int,
        num_prompt: int,
        token_ids: tuple[int, ...],
        now: float,
    ) -> None:
        """Begin a log; of tokens that it brings, what the request's log before says of them."""
        log = SequenceLog(number, request_id, branch, token_ids[:num_prompt], added=now)
        before = self._latest.get((request_id, branch))
        for place, token_id in enumerate(token_ids[num_prompt:]):
            fact, when = TokenFact(token_id, None, "brought", number), now
            if before is not None and before.token_ids[place : place + 1] == [token_id]:
                fact, when = before.tokens[place], before.seconds[place]
            log.tokens.append(fact)
            log.seconds.append(when)
        self.by_id[number] = self._latest[request_id, branch] = log

    def _fork(self, event: SequenceForked, now: float) -> None:
        parent = self.by_id[event.parent_id]
        shared = event.num_tokens - event.num_prompt_tokens
        log = SequenceLog(
            event.sequence_id,
            event.request_id,
            event.branch,
            parent.prompt_token_ids,
            parent_id=event.parent_id,
            tokens=parent.tokens[:shared],
            seconds=parent.seconds[:shared],
            added=now if event.request_id != parent.request_id else parent.added,
        )
        self.by_id[event.sequence_id] = log
        self._latest[event.request_id, event.branch] = log
        for token_id in event.token_ids:
            fact = TokenFact(token_id, event.step, "chosen", event.sequence_id)
            self._append(event.sequence_id, fact, now)

    def _step_done(self, event: StepDone, now: float) -> None:
        told = event.logprobs or (None,) * len(event.tokens)
        made: dict[int, int] = {}  # of each sequence in this step
        for at, ((number, token_id), entry) in enumerate(zip(event.tokens, told, strict=True)):
            place = made[number] = made.get(number, -1) + 1
            draft = self._drafts.get(number)
            drafted = draft is not None and place < len(draft.accepted)
            maker = "forced" if at in event.forced else "sampled"
            fact = TokenFact(token_id, event.step, maker, number)
            if draft is not None and drafted:
                fact = fact._replace(maker="drafted", proposer=draft.proposer)
            if entry is not None:
                fact = fact._replace(logprob=entry[0], top=entry[1])
            self._append(number, fact, now)
        self._drafts.clear()

    def _append(self, number: int, fact: TokenFact, now: float) -> None:
        log = self.by_id[number]
        log.tokens.append(fact)
        log.seconds.append(now)
