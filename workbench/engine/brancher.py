"""`Brancher`: copies of sequences that share blocks, made through the scheduler.

One per engine: handed to each `Strategy.advance` between two steps, and used by `Engine.fork`.
"""

from __future__ import annotations

from workbench.engine.admission import make_branch
from workbench.engine.requests import RequestBook, RequestRecord
from workbench.engine.strategies import make_strategy
from workbench.events import RequestAdded
from workbench.interrupts import shielded
from workbench.models import DecoderLM
from workbench.request import FinishReason, Request, Sequence, TokenLogprobs
from workbench.scheduler import Scheduler


class Brancher:
    """Implements `Branching` for one engine's scheduler and book."""

    def __init__(self, model: DecoderLM, scheduler: Scheduler, book: RequestBook) -> None:
        self.model, self.scheduler, self.book = model, scheduler, book

    def branch(self, record: RequestRecord, parent: Sequence, num_tokens: int) -> Sequence:
        """Return a new branch of the record, queued or running: `parent`'s first `num_tokens`."""
        index, number = len(record.sequences), self.book.next_number()
        child = make_branch(parent, num_tokens, record.request, number, index, self.model)
        record.sequences.append(child)
        self.scheduler.fork(parent, child)
        return child

    def twin(self, parent: Sequence, request: Request) -> None:
        """Enter a new request that goes on from all of `parent`'s tokens."""
        number, length = self.book.next_number(), parent.num_tokens
        child = make_branch(parent, length, request, number, 0, self.model)
        strategy = make_strategy(request.params, length)
        bus, step = self.scheduler.bus, self.scheduler.step
        with shielded():
            self.book.add(RequestRecord(request, [child], strategy))
            if bus:
                sizes = child.num_prompt_tokens, request.params.max_tokens
                bus.emit(RequestAdded(step, request.request_id, number, *sizes))
            self.scheduler.fork(parent, child)

    def extend(self, sequence: Sequence, token_id: int, entry: TokenLogprobs) -> None:
        """Append a token to a sequence."""
        self.scheduler.extend(sequence, token_id, entry)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, keeping what it made."""
        self.scheduler.finish(sequence, reason)
