"""The two queues, waiting and running, and how a sequence moves between them.

Every change of a sequence's `status` happens here, with the event that states it. Used by the
planner (start, preempt) and by the scheduler (add, fork, finish), under the scheduler's books.
"""

from __future__ import annotations

import time

from workbench.cache import Blocks
from workbench.events import (
    EventBus,
    Preempted,
    PrefixHit,
    PrefixMiss,
    RequestFinished,
    SequenceAdmitted,
)
from workbench.request import FinishReason, Sequence, Status
from workbench.scheduler.ending import mark_finished


class Queues:
    """`waiting` in the order they were last sorted; `running` by sequence id, as admitted.

    `timed` holds the unfinished sequences with a deadline, so that nobody else pays for asking.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.bus = EventBus()
        self.step = 0
        self.waiting: list[Sequence] = []
        self.running: dict[int, Sequence] = {}
        self.timed: dict[int, Sequence] = {}

    @property
    def num_unfinished(self) -> int:
        """Sequences waiting or running."""
        return len(self.waiting) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)
        if sequence.request.deadline is not None:
            self.timed[sequence.sequence_id] = sequence

    def run(self, sequence: Sequence, num_computed: int) -> None:
        """Note that a sequence runs, with the KV of its first `num_computed` tokens in its blocks.

        The caller takes it out of `waiting`, where it was in there.
        """
        sequence.status = Status.RUNNING
        sequence.num_computed = num_computed
        self.running[sequence.sequence_id] = sequence
        if self.bus:
            self.bus.emit(SequenceAdmitted(self.step, sequence.sequence_id, num_computed))

    def start(self, sequence: Sequence, num_cached: int, reason: str) -> None:
        """Run a waiting sequence whose prefix lookup found `num_cached` tokens; say why no more."""
        metrics = sequence.metrics
        if metrics.first_scheduled is None:
            metrics.first_scheduled = time.monotonic()
            metrics.num_cached_tokens = num_cached
        if self.bus:
            ids, total = (self.step, sequence.sequence_id), sequence.num_tokens
            hit = PrefixHit(*ids, num_cached, total, reason)
            self.bus.emit(hit if num_cached else PrefixMiss(*ids, total, reason))
        self.run(sequence, num_cached)

    def preempt(self, sequence: Sequence, cause: str) -> None:
        """Take a sequence's blocks; it will catch up from scratch, or from what stayed cached."""
        if self.bus:
            ids = self.step, sequence.sequence_id
            self.bus.emit(Preempted(*ids, cause, sequence.num_computed))
        self.blocks.free(sequence.sequence_id)
        del self.running[sequence.sequence_id]
        self.waiting.insert(0, sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.metrics.num_preemptions += 1

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take an unfinished sequence out of its queue and release its blocks."""
        if sequence.status is Status.RUNNING:
            self.blocks.free(sequence.sequence_id)
            del self.running[sequence.sequence_id]
        else:
            self.waiting.remove(sequence)
        self.timed.pop(sequence.sequence_id, None)
        mark_finished(sequence, reason)
        if self.bus:
            ids = self.step, sequence.request.request_id, sequence.sequence_id
            self.bus.emit(RequestFinished(*ids, reason, sequence.num_output_tokens))

    def expire(self) -> list[Sequence]:
        """End whatever is past its deadline, keeping what it made; return it."""
        if not self.timed:
            return []
        now = time.monotonic()
        late = [s for s in self.timed.values() if (s.request.deadline or now) < now]
        for sequence in late:
            self.finish(sequence, "timeout")
        return late
