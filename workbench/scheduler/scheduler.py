"""`Scheduler`: decides each step's batch and takes its results in.

One rule, no phases: every sequence has `num_computed` and `num_tokens`, and a step lets it catch up
by some tokens: a prompt, a chunk of one, a decode, a resume after preemption. The scheduler is the
one writer of `Sequence` and drives the cache's block manager; it never sees a tensor.
"""

from __future__ import annotations

import time
from typing import Any

from workbench.batch import SampledTokens, StepPlan
from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.describe import Described
from workbench.events import (
    EventBus,
    PolicyFailed,
    Preempted,
    PrefixHit,
    PrefixMiss,
    RequestFinished,
    SequenceAdmitted,
    StepPlanned,
)
from workbench.request import FinishReason, Sequence, Status
from workbench.scheduler.books import Books, StalePlan
from workbench.scheduler.ending import append, mark_finished
from workbench.scheduler.policy import GuardedPolicy, Policy, get_policy, policy_name


class Scheduler(Described):
    """Continuous batching over a KV cache.

    `waiting` and `running` are the two queues, guarded by `books`. `schedule()` and `commit()`
    alternate; after a failure in between, the next `schedule()` plans the same work again.
    """

    def __init__(self, cache: KVCache, config: SchedulerConfig | None = None) -> None:
        self.config = config or SchedulerConfig()
        self.blocks = cache.blocks
        self._order = GuardedPolicy(get_policy(self.config.policy), self._policy_failed)
        self.bus = EventBus()
        self._waiting: list[Sequence] = []
        self._running: dict[int, Sequence] = {}  # by sequence id, in order of admission
        self.step = 0
        self.books = Books()
        self._plan: StepPlan | None = None  # planned and not yet committed

    @property
    def policy(self) -> Policy:
        """The key function that orders admission and, reversed, preemption; replaceable."""
        return self._order.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._order.policy = policy

    @property
    def waiting(self) -> list[Sequence]:
        """The waiting sequences, as they were last ordered (a copy)."""
        return list(self._waiting)

    @property
    def running(self) -> list[Sequence]:
        """The running sequences in order of admission (a copy)."""
        return list(self._running.values())

    @property
    def num_unfinished(self) -> int:
        """Sequences waiting or running."""
        return len(self._waiting) + len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the cache when it is alone: `engine.add` checks that."""
        self._waiting.append(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Queue `child`, a copy of `parent`'s tokens: it shares its blocks, or waits for a place.

        Who first writes to a shared block copies it.
        """
        assert child.token_ids[: parent.num_computed] == parent.token_ids[: parent.num_computed]
        with self.books.open("fork"):
            room = len(self._running) < self.config.max_sequences
            if parent.status is not Status.RUNNING or not room:
                self._waiting.append(child)
                return
            self.blocks.fork(parent.sequence_id, child.sequence_id)
            child.status = Status.RUNNING
            child.num_computed = parent.num_computed
            self._running[child.sequence_id] = child
            if self.bus:
                self.bus.emit(SequenceAdmitted(self.step, child.sequence_id, child.num_computed))

    # --- planning -----------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Return the next step's batch, with blocks allocated for everything in it."""
        self._order.sort(self._waiting)
        with self.books.open("schedule"):
            self.step += 1
            self.blocks.step = self.step
            plan = StepPlan(self.step)
            budget = self._plan_decodes(plan, self.config.max_batch_tokens)
            budget = self._plan_chunks(plan, budget)
            if not plan.preempted:  # what was just evicted must not come straight back
                self._admit(plan, budget)
            plan.copies = list(self.blocks.pending_copies)
            if self.bus:
                ids = [sequence.sequence_id for sequence in plan.sequences]
                rows = tuple(zip(ids, plan.starts, plan.num_new, strict=True))
                self.bus.emit(StepPlanned(self.step, rows, len(self._waiting), len(self._running)))
            self._plan = plan
            return plan

    def _plan_decodes(self, plan: StepPlan, budget: int) -> int:
        """Plan the sequences that are one token behind; they come first in the packed batch."""
        blocks, block_size = self.blocks, self.blocks.block_size
        tables, ref_counts = blocks.tables, blocks.ref_counts
        sequences, starts = plan.sequences, plan.starts
        for sequence in self.running:
            start = sequence.num_computed
            if len(sequence.token_ids) - start != 1 or sequence.status is not Status.RUNNING:
                continue
            # Usual case, inlined because it is run for every sequence in every step: the last block
            # has room and nobody shares it.
            block_ids = tables[sequence.sequence_id].block_ids
            index = start // block_size
            full = index >= len(block_ids) or ref_counts[block_ids[index]] > 1
            if full and not self._make_room(plan, sequence, start, start + 1):
                continue
            sequences.append(sequence)
            starts.append(start)
        plan.num_decodes = len(sequences)
        plan.num_new = [1] * len(sequences)
        plan.sampled = list(range(len(sequences)))
        if plan.preempted:
            plan.drop_waiting()
        return budget - plan.num_decodes

    def _plan_chunks(self, plan: StepPlan, budget: int) -> int:
        """Plan running sequences that are further behind: chunks of a prompt."""
        for sequence in self.running:
            start, behind = sequence.num_computed, sequence.num_tokens - sequence.num_computed
            if behind == 1 or sequence.status is not Status.RUNNING or budget <= 0:
                continue
            if not self._may_start(plan, behind, budget):
                continue
            num_new = min(behind, budget) if self.config.chunked_prefill else behind
            grown = self._make_room(plan, sequence, start, start + num_new)
            plan.drop_waiting()
            if grown:
                plan.append(sequence, num_new)
                budget -= num_new
        return budget

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Start waiting sequences in order, until one finds no budget or no blocks."""
        admitted = 0
        for sequence in self._waiting:
            if budget <= 0 or len(self._running) >= self.config.max_sequences:
                break
            lookup = None
            namespace = sequence.request.namespace
            if self.config.prefix_reuse:
                lookup = self.blocks.lookup(sequence.token_ids, namespace)
            num_cached = lookup.num_tokens if lookup else 0
            behind = sequence.num_tokens - num_cached
            if not self._may_start(plan, behind, budget):
                break
            if not self._fits(sequence, lookup.block_ids if lookup else ()):
                break
            self.blocks.open(sequence.sequence_id, lookup, namespace)
            self._start(sequence, num_cached, lookup.reason if lookup else "prefix reuse is off")
            num_new = min(behind, budget) if self.config.chunked_prefill else behind
            self.blocks.grow(sequence.sequence_id, num_cached, num_cached + num_new)
            plan.append(sequence, num_new)
            budget -= num_new
            admitted += 1
        del self._waiting[:admitted]

    def _may_start(self, plan: StepPlan, behind: int, budget: int) -> bool:
        """Whether the budget allows it: an unsplittable prompt may exceed it, but one at a time."""
        alone = len(plan.sequences) == plan.num_decodes
        return self.config.chunked_prefill or behind <= budget or alone

    def _fits(self, sequence: Sequence, found: tuple[int, ...]) -> bool:
        """Whether all its tokens fit into free blocks, so that it can start undisturbed."""
        revived = sum(1 for block_id in found if self.blocks.ref_counts[block_id] == 0)
        needed = self.blocks.blocks_for(sequence.num_tokens) - len(found)
        return needed + revived <= self.blocks.num_free

    def _start(self, sequence: Sequence, num_cached: int, reason: str) -> None:
        sequence.status = Status.RUNNING
        sequence.num_computed = num_cached
        self._running[sequence.sequence_id] = sequence
        metrics = sequence.metrics
        if metrics.first_scheduled is None:
            metrics.first_scheduled = time.monotonic()
            metrics.num_cached_tokens = num_cached
        if self.bus:
            ids, total = (self.step, sequence.sequence_id), sequence.num_tokens
            hit = PrefixHit(*ids, num_cached, total, reason)
            self.bus.emit(hit if num_cached else PrefixMiss(*ids, total, reason))
            self.bus.emit(SequenceAdmitted(*ids, num_cached))

    def _make_room(self, plan: StepPlan, sequence: Sequence, start: int, stop: int) -> bool:
        """Grow a table, preempting while blocks lack; False if this sequence was."""
        blocks = self.blocks
        while blocks.num_missing(sequence.sequence_id, start, stop) > blocks.num_free:
            victim = self._order.last(self._running.values())
            self._preempt(victim, f"no free block for sequence {sequence.sequence_id}")
            plan.preempted.append(victim)
            if victim is sequence:
                return False
        blocks.grow(sequence.sequence_id, start, stop)
        return True

    def _preempt(self, sequence: Sequence, cause: str) -> None:
        """Take a sequence's blocks; it will catch up from scratch, or from what stayed cached."""
        if self.bus:
            ids = self.step, sequence.sequence_id
            self.bus.emit(Preempted(*ids, cause, sequence.num_computed))
        self.blocks.free(sequence.sequence_id)
        del self._running[sequence.sequence_id]
        self._waiting.insert(0, sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.metrics.num_preemptions += 1

    def _policy_failed(self, name: str, trace: str) -> None:
        if self.bus:
            self.bus.emit(PolicyFailed(self.step, name, trace))

    # --- results ------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, sampled: SampledTokens) -> list[Sequence]:
        """Take a step's results in: advance every row, append its token; return what finished.

        Raises `StalePlan` for any but the latest plan, and for one that was committed before.
        """
        with self.books.open("commit"):
            if plan is not self._plan:
                raise StalePlan(plan.step, self.step)
            self._plan = None
            self.blocks.finish_copies()
            self._advance(plan)
            return self._append_tokens(plan, sampled)

    def _advance(self, plan: StepPlan) -> None:
        block_size = self.blocks.block_size
        for sequence, start, num_new in zip(plan.sequences, plan.starts, plan.num_new, strict=True):
            if sequence.status is not Status.RUNNING:
                continue  # aborted while the step ran
            computed = sequence.num_computed = start + num_new
            if computed // block_size > start // block_size:
                self.blocks.publish(sequence.sequence_id, sequence.token_ids, computed)

    def _append_tokens(self, plan: StepPlan, sampled: SampledTokens) -> list[Sequence]:
        finished: list[Sequence] = []
        entries = sampled.logprobs or [None] * len(plan.sampled)
        for row, token_id, entry in zip(plan.sampled, sampled.token_ids, entries, strict=True):
            sequence = plan.sequences[row]
            if sequence.status is Status.RUNNING and append(sequence, token_id, entry):
                finished.append(sequence)
        for sequence in finished:
            assert sequence.finish_reason is not None
            self._finish(sequence, sequence.finish_reason)
        return finished

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence in any state and release its blocks; idempotent."""
        with self.books.open("finish"):
            if sequence.status is not Status.FINISHED:
                self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.status is Status.RUNNING:
            self.blocks.free(sequence.sequence_id)
            del self._running[sequence.sequence_id]
        else:
            self._waiting.remove(sequence)
        mark_finished(sequence, reason)
        if self.bus:
            ids = self.step, sequence.request.request_id, sequence.sequence_id
            self.bus.emit(RequestFinished(*ids, reason, sequence.num_output_tokens))

    def describe(self) -> dict[str, Any]:
        """Return the queues and the budgets."""
        return {
            "waiting": len(self._waiting),
            "running": len(self._running),
            "policy": policy_name(self.policy),
            "max_batch_tokens": self.config.max_batch_tokens,
            "max_sequences": self.config.max_sequences,
            "chunked_prefill": self.config.chunked_prefill,
            "prefix_reuse": self.config.prefix_reuse,
        }
