"""Where each sequence is: waiting, running or paused, and how it moves between these.

Every change of a sequence's `status` happens here, with the event that states it. Used by the
planner (start, preempt) and by the scheduler (add, fork, pause, finish), under the scheduler's
books.
"""

from __future__ import annotations

import time

from workbench.cache import Blocks, PrefixLookup, Swapper
from workbench.config import Preemption
from workbench.errors import ConfigError
from workbench.events import (
    EventBus,
    Preempted,
    PrefixAwaited,
    PrefixHit,
    PrefixMiss,
    RequestFailed,
    RequestFinished,
    SequenceAdmitted,
    SequencePaused,
    SequenceResumed,
    SwappedIn,
)
from workbench.request import FinishReason, Sequence, Status
from workbench.scheduler.ending import mark_finished
from workbench.scheduler.names import BlockNames
from workbench.scheduler.prefix_waits import PrefixWaits


class Queues:
    """`waiting` in the order they were last sorted; `running` by sequence id, as admitted.

    `paused` run only when they are resumed. `holding` are those, paused or resumed and waiting,
    that still have their blocks. `timed` holds the unfinished sequences with a deadline, so that
    nobody else pays for asking.
    """

    def __init__(self, blocks: Blocks, preemption: Preemption = "recompute") -> None:
        self.blocks, self.preemption = blocks, preemption
        self.swapper = Swapper(blocks)
        self.prefix_waits = PrefixWaits(blocks)
        self.bus = EventBus()
        self.step = 0
        self.waiting: list[Sequence] = []
        self.running: dict[int, Sequence] = {}
        self.paused: dict[int, Sequence] = {}
        self.holding: dict[int, Sequence] = {}
        self.timed: dict[int, Sequence] = {}
        self._names: dict[int, BlockNames] = {}

    @property
    def num_unfinished(self) -> int:
        """Sequences waiting or running."""
        return len(self.waiting) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; one that comes paused, from a checkpoint, stays so."""
        if not isinstance(sequence, Sequence):
            fix = "Prompts go to `engine.add`, which makes one of them (`make_sequence`)."
            raise ConfigError("sequence", sequence, "is not a Sequence", fix)
        if sequence.status is Status.PAUSED:
            self.paused[sequence.sequence_id] = sequence
        else:
            self.waiting.append(sequence)
        if sequence.request.deadline is not None:
            self.timed[sequence.sequence_id] = sequence

    def names(self, sequence: Sequence) -> BlockNames:
        """Return the names of its prompt's blocks; they are kept while it waits."""
        names = self._names.get(sequence.sequence_id)
        if names is None:
            request = sequence.request
            size = self.blocks.block_size
            names = BlockNames(request.prompt_token_ids, size, request.namespace)
            if sequence.status is Status.WAITING:
                self._names[sequence.sequence_id] = names
        return names

    def awaits_prefix(self, sequence: Sequence, found: PrefixLookup) -> bool:
        """Whether a waiting sequence goes on waiting, for a prefix that a running one computes."""
        awaited = self.prefix_waits.find(sequence, found)
        if awaited is not None and self.bus:
            ids = self.step, sequence.sequence_id, awaited.leader.sequence_id
            self.bus.emit(PrefixAwaited(*ids, awaited.num_tokens))
        return awaited is not None

    def _waits_no_more(self, sequence: Sequence) -> None:
        """Forget what is known of a sequence while it waits."""
        self._names.pop(sequence.sequence_id, None)
        self.prefix_waits.drop(sequence.sequence_id)

    def run(self, sequence: Sequence, num_computed: int) -> None:
        """Note that a sequence runs, with the KV of its first `num_computed` tokens in its blocks.

        The caller takes it out of `waiting`, where it was in there.
        """
        sequence.status = Status.RUNNING
        sequence.num_computed = num_computed
        self.running[sequence.sequence_id] = sequence
        self._waits_no_more(sequence)
        if self.bus:
            self.bus.emit(SequenceAdmitted(self.step, sequence.sequence_id, num_computed))

    def start(self, sequence: Sequence, lookup: PrefixLookup | None) -> None:
        """Run a waiting sequence with what a prefix lookup found; None: nobody looked."""
        num_cached = lookup.num_tokens if lookup else 0
        request = sequence.request
        self.blocks.open(sequence.sequence_id, lookup, request.namespace, request.retention)
        if lookup is not None:
            counters = self.blocks.counters
            counters.lookups += 1
            counters.hit_tokens += num_cached
            counters.missed_tokens += sequence.num_tokens - num_cached
        metrics = sequence.metrics
        if metrics.first_scheduled is None:
            metrics.first_scheduled = time.monotonic()
            metrics.num_cached_tokens = num_cached
        if self.bus:
            ids, total = (self.step, sequence.sequence_id), sequence.num_tokens
            why = ("prefix reuse is off", "off")
            if lookup is not None:
                why = lookup.reason, lookup.cause
            hit = PrefixHit(*ids, num_cached, total, *why)
            self.bus.emit(hit if num_cached else PrefixMiss(*ids, total, *why))
        self.run(sequence, num_cached)

    def swap_in(self, sequence: Sequence, kept: PrefixLookup) -> None:
        """Run a waiting sequence that was swapped out."""
        request = sequence.request
        self.blocks.open(sequence.sequence_id, kept, request.namespace, request.retention)
        if self.bus:
            self.bus.emit(SwappedIn(self.step, sequence.sequence_id, kept.num_tokens))
        self.run(sequence, kept.num_tokens)

    def go_on(self, sequence: Sequence) -> None:
        """Run a sequence that was resumed and has its blocks."""
        del self.holding[sequence.sequence_id]
        self.run(sequence, sequence.num_computed)

    def preempt(self, sequence: Sequence, cause: str) -> None:
        """Take a running or holding sequence's blocks: it catches up later, from what is kept.

        A running one waits first in line; a paused one stays paused.
        """
        kind = self.preemption
        if kind == "swap":
            kind, note = self._swap_out(sequence)
            cause += note
        self.blocks.counters.swapped += kind == "swap"
        self.blocks.counters.recomputed += kind == "recompute"
        if self.bus:
            ids = self.step, sequence.sequence_id
            self.bus.emit(Preempted(*ids, cause, sequence.num_computed, kind))
        self.blocks.free(sequence.sequence_id)
        if self.holding.pop(sequence.sequence_id, None) is None:
            del self.running[sequence.sequence_id]
            self.waiting.insert(0, sequence)
            sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.metrics.num_preemptions += 1

    def _swap_out(self, sequence: Sequence) -> tuple[Preemption, str]:
        """Keep a sequence's KV on the host; return what became of it, and a note if it failed.

        Of a beam that has reported, all but the last token: it reports again, as if recomputed.
        """
        num_kept = min(sequence.num_computed, sequence.num_tokens - 1)
        if not num_kept:
            return "recompute", ""
        table = self.blocks.tables[sequence.sequence_id]
        if table.holes or table.masses:
            return "recompute", "; not swapped out, blocks of it were dropped or weighed"
        if self.swapper.swap_out(sequence.sequence_id, sequence.token_ids[:num_kept]):
            return "swap", ""
        return "recompute", "; not swapped out, the host tier is full"

    def pause(self, sequence: Sequence) -> None:
        """Keep an unfinished sequence from running; with its blocks, if it has any."""
        if sequence.status in (Status.PAUSED, Status.FINISHED):
            return
        if sequence.status is Status.RUNNING:
            del self.running[sequence.sequence_id]
            self.holding[sequence.sequence_id] = sequence
        elif not sequence.awaits_guide:
            self.waiting.remove(sequence)
        sequence.status = Status.PAUSED
        self._waits_no_more(sequence)
        self.paused[sequence.sequence_id] = sequence
        if self.bus:
            self.bus.emit(SequencePaused(self.step, sequence.sequence_id))

    def resume(self, sequence: Sequence, has_place: bool) -> None:
        """Let a paused sequence go on: at once if it has blocks and a place, else it waits."""
        if sequence.status is not Status.PAUSED:
            return
        self.paused.pop(sequence.sequence_id, None)  # it may not have been queued yet
        runs = has_place and sequence.sequence_id in self.holding
        if self.bus:
            ids = self.step, sequence.sequence_id
            self.bus.emit(SequenceResumed(*ids, runs, sequence.awaits_guide))
        if runs:
            self.go_on(sequence)
        else:
            sequence.status = Status.WAITING
            if not sequence.awaits_guide:
                self.waiting.append(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take an unfinished sequence out of its queue, if it is in one, and release its blocks."""
        number = sequence.sequence_id
        if sequence.status is Status.WAITING and sequence in self.waiting:
            self.waiting.remove(sequence)
        self.running.pop(number, None)
        self.paused.pop(number, None)
        self.holding.pop(number, None)
        self.timed.pop(number, None)
        self._waits_no_more(sequence)
        if number in self.blocks.tables:
            self.blocks.free(number)
        else:
            self.swapper.drop(number)
        mark_finished(sequence, reason)
        if self.bus:
            ids = self.step, sequence.request.request_id, number
            if sequence.error is not None:
                self.bus.emit(RequestFailed(*ids, sequence.error))
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
