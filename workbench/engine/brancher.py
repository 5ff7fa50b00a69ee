"""`Brancher`: copies of sequences that share blocks, made through the scheduler.

One per engine: handed to each `Strategy.advance` between two steps, and used by `Engine.fork`.
"""

from __future__ import annotations

from workbench.engine.admission import make_branch
from workbench.engine.guides import GuideDesk
from workbench.engine.requests import RequestBook, RequestRecord
from workbench.engine.strategies import make_strategy
from workbench.interrupts import shielded
from workbench.models import DecoderLM
from workbench.request import FinishReason, Request, Sequence, TokenLogprobs
from workbench.scheduler import Scheduler, added, append_token, ends, mark_finished


class Brancher:
    """Implements `Branching` for one engine's scheduler and book."""

    def __init__(
        self, model: DecoderLM, scheduler: Scheduler, book: RequestBook, desk: GuideDesk
    ) -> None:
        self.model, self.scheduler, self.book, self.desk = model, scheduler, book, desk

    def branch(
        self,
        record: RequestRecord,
        parent: Sequence,
        num_tokens: int,
        entry: TokenLogprobs | None = None,
    ) -> Sequence:
        """Return a new branch of the record, queued or running: `parent`'s first `num_tokens`, and
        the token of `entry`."""
        index, number = len(record.sequences), self.book.next_number()
        child = make_branch(parent, num_tokens, record.request, number, index, self.model)
        child.chooser = parent.chooser
        if entry is not None:
            append_token(child, entry.token_id, entry)
        record.sequences.append(child)
        self.scheduler.fork(parent, child)
        return child

    def twin(self, parent: Sequence, request: Request) -> None:
        """Enter a new request that goes on from all of `parent`'s tokens."""
        number, length = self.book.next_number(), parent.num_tokens
        child = make_branch(parent, length, request, number, 0, self.model)
        strategy = make_strategy(request.params, child)
        with shielded():
            self.book.add(RequestRecord(request, [child], strategy))
            if child.awaits_guide:
                self.desk.queue(child)  # the parent waits for the same grammar
            else:
                self.scheduler.fork(parent, child)
            self._tell(child)

    def _tell(self, sequence: Sequence) -> None:
        if self.scheduler.bus:
            waits = self.desk.holds(sequence)
            self.scheduler.bus.emit(added(self.scheduler.step, sequence, compiling=waits))

    def enter(self, record: RequestRecord) -> None:
        """Enter a record that was packed before.

        Sequences that have not ended wait, and compute what the cache does not have.
        """
        self.book.add(record)
        for sequence in record.sequences:
            if sequence.finished:
                continue
            self.desk.queue(sequence)
            self._tell(sequence)

    def ended_copy(self, parent: Sequence, entry: TokenLogprobs) -> Sequence | None:
        """Return what `parent` makes with the token of `entry` if that ends it, else None."""
        number, length = parent.sequence_id, parent.num_tokens
        copy = make_branch(parent, length, parent.request, number, parent.index, self.model)
        append_token(copy, entry.token_id, entry)
        if not ends(copy, entry.token_id):
            return None
        assert copy.finish_reason is not None
        mark_finished(copy, copy.finish_reason)
        return copy

    def extend(self, sequence: Sequence, entry: TokenLogprobs) -> None:
        """Append the token of `entry` to a sequence, whose chooser looks after its end."""
        self.scheduler.extend(sequence, entry)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, keeping what it made."""
        self.scheduler.finish(sequence, reason)

    def finish_like(self, sequence: Sequence, ended: Sequence) -> None:
        """End a sequence for the reason for which another one has ended."""
        assert ended.finish_reason is not None
        if ended.error is not None:
            self.scheduler.refuse(sequence, ended.error)
        else:
            self.scheduler.finish(sequence, ended.finish_reason)
