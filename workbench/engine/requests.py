"""`RequestRecord`: a request and the sequences that run for it; `RequestBook`: all an engine knows.

Most requests run one sequence. A `Strategy` makes more of them (`n`, beams) as copies that share
blocks, and says which are returned. The book never touches queues or blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from workbench.describe import Described
from workbench.errors import RequestError, UnknownRequest
from workbench.metrics import RequestMetrics
from workbench.request import FinishReason, Request, Sequence, TokenLogprobs


class Branching(Protocol):
    """What a strategy may do to its request's sequences, between two steps."""

    def branch(
        self,
        record: RequestRecord,
        parent: Sequence,
        num_tokens: int,
        entry: TokenLogprobs | None = None,
    ) -> Sequence:
        """Return a new branch of the record, queued or running: `parent`'s first `num_tokens`, and
        the token of `entry`."""

    def ended_copy(self, parent: Sequence, entry: TokenLogprobs) -> Sequence | None:
        """Return what `parent` makes with the token of `entry` if that ends it, else None."""

    def extend(self, sequence: Sequence, entry: TokenLogprobs) -> None:
        """Append the token of `entry` to a sequence, whose chooser looks after its end."""

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, keeping what it made."""

    def finish_like(self, sequence: Sequence, ended: Sequence) -> None:
        """End a sequence for the reason for which another one has ended."""


class Strategy(Protocol):
    """Runs several sequences for one request; one object per request."""

    settled: bool  # whether it will change the set of sequences no more

    def begin(self, first: Sequence) -> None:
        """Called once, with the request's first sequence, before it runs."""

    def advance(self, record: RequestRecord, engine: Branching) -> list[Sequence]:
        """Called after each committed step until `settled`; return the sequences it finished."""

    def selected(self, record: RequestRecord) -> list[Sequence]:
        """Return the sequences that stand for the request's outputs now, best first."""

    def pack(self, places: dict[int, int]) -> dict[str, Any]:
        """Return its state as plain data. places: id() of the request's sequences -> position."""

    def unpack(self, data: dict[str, Any], sequences: list[Sequence]) -> None:
        """Take the state of `pack` on, with the sequences in their positions."""


@dataclass(slots=True, eq=False, repr=False)
class RequestRecord(Described):
    """A request with its sequences, by branch. `strategy` is None for a single one."""

    request: Request
    sequences: list[Sequence]
    strategy: Strategy | None = None

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended and no further one will come."""
        settled = self.strategy is None or self.strategy.settled
        return settled and all(sequence.finished for sequence in self.sequences)

    @property
    def selected(self) -> list[Sequence]:
        """The sequences that stand for the request's outputs now, best first."""
        return self.sequences if self.strategy is None else self.strategy.selected(self)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, over all sequences."""
        return sum(sequence.num_output_tokens for sequence in self.sequences)

    @property
    def metrics(self) -> RequestMetrics:
        """The request's times and counts: of its only sequence, or over all of them."""
        first, *others = (sequence.metrics for sequence in self.sequences)
        return RequestMetrics.over([first, *others]) if others else first

    def describe(self) -> dict[str, Any]:
        """Return where the request stands."""
        states = [f"{s.index}: {s.status.value}, {s.num_output_tokens}" for s in self.sequences]
        return {
            "request": self.request.request_id,
            "prompt": len(self.request.prompt_token_ids),
            "branches (output tokens)": "; ".join(states),
            "finished": self.finished,
        }


class RequestBook:
    """The requests of an engine by id, and those whose strategy is still at work."""

    def __init__(self) -> None:
        self.records: dict[str, RequestRecord] = {}
        self.unsettled: dict[str, RequestRecord] = {}
        self._numbers, self._names = count(), count()

    def next_number(self) -> int:
        """Return the next sequence id."""
        return next(self._numbers)

    def free_name(self) -> str:
        """Return a request id that nobody has."""
        names = (f"r{number}" for number in self._names)
        return next(name for name in names if name not in self.records)

    def require_free(self, request_id: str) -> None:
        """Raise `RequestError` if the id is taken."""
        if request_id in self.records:
            raise RequestError("request_id", request_id, "already in use", "Choose another.")

    def add(self, record: RequestRecord) -> None:
        """Enter a record."""
        self.records[record.request.request_id] = record
        if record.strategy is not None and not record.strategy.settled:
            self.unsettled[record.request.request_id] = record

    def find(self, request_id: str) -> RequestRecord:
        """Return a record, or raise `UnknownRequest`."""
        if not isinstance(request_id, str) or request_id not in self.records:
            raise UnknownRequest(request_id, self.records)
        return self.records[request_id]

    def unfinished(self) -> list[Request]:
        """Return the requests that have not ended."""
        return [record.request for record in self.records.values() if not record.finished]

    def drop(self, request_id: str) -> RequestRecord | None:
        """Take a record out and return it; None if it is not there."""
        self.unsettled.pop(request_id, None)
        return self.records.pop(request_id, None)

    def advance(self, engine: Branching) -> list[Sequence]:
        """Let every strategy at work take the last step in; return what they finished."""
        finished: list[Sequence] = []
        for request_id, record in list(self.unsettled.items()):
            assert record.strategy is not None
            finished += record.strategy.advance(record, engine)
            if record.strategy.settled or all(s.finished for s in record.sequences):
                del self.unsettled[request_id]
        return finished

    def end(self, record: RequestRecord, finish: Callable[[Sequence], Any]) -> None:
        """End a request early: no further branch comes, and `finish` is called with each one."""
        if record.strategy is not None:
            record.strategy.settled = True
        self.unsettled.pop(record.request.request_id, None)
        for sequence in list(record.sequences):
            finish(sequence)
