"""`Scheduler`: decides each step's batch and takes its results in.

One rule, no phases: every sequence has `num_computed` and `num_tokens`, and a step lets it catch up
by some tokens. A prompt, a chunk of one, a decode and a resume after preemption are cases of that
rule. The scheduler is the one writer of `Sequence` and drives the cache's block manager; it never
sees a tensor.
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
from workbench.interrupts import shielded
from workbench.request import FinishReason, Sequence, Status
from workbench.scheduler.ending import ends
from workbench.scheduler.policy import GuardedPolicy, Policy, get_policy, policy_name


class Scheduler(Described):
    """Continuous batching over a KV cache.

    `waiting` and `running` are the two queues. `schedule()` and `commit()` alternate; if a step
    fails between them, the next `schedule()` plans the same work again and nothing leaks.
    """

    def __init__(self, cache: KVCache, config: SchedulerConfig | None = None) -> None:
        self.config = config or SchedulerConfig()
        self.blocks = cache.blocks
        self._order = GuardedPolicy(get_policy(self.config.policy), self._policy_failed)
        self.bus = EventBus()
        self.waiting: list[Sequence] = []
        self._running: dict[int, Sequence] = {}  # by sequence id, in order of admission
        self.step = 0

    @property
    def policy(self) -> Policy:
        """The key function that orders admission and, reversed, preemption; replaceable."""
        return self._order.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._order.policy = policy

    @property
    def running(self) -> list[Sequence]:
        """The running sequences in order of admission (a copy)."""
        return list(self._running.values())

    @property
    def num_unfinished(self) -> int:
        """Sequences waiting or running."""
        return len(self.waiting) + len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the cache when it is alone: `engine.add` checks that."""
        self.waiting.append(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Queue `child`, which begins as a copy of `parent`'s tokens, sharing its blocks if it may
        run.

        Blocks are copied when either first writes to a shared one. Where no place is left to run,
        the child waits like any other and finds what it can in the prefix cache.
        """
        assert child.token_ids[: parent.num_computed] == parent.token_ids[: parent.num_computed]
        with shielded():
            room = len(self._running) < self.config.max_sequences
            if parent.status is not Status.RUNNING or not room:
                self.waiting.append(child)
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
        self._order.sort(self.waiting)
        with shielded():
            self.step += 1
            self.blocks.step = self.step
            plan = StepPlan(self.step)
            budget = self._plan_decodes(plan, self.config.max_batch_tokens)
            budget = self._plan_chunks(plan, budget)
            if not plan.preempted:  # what was just evicted must not come straight back
                self._admit(plan, budget)
            plan.copies = list(self.blocks.pending_copies)
        if self.bus:
            rows = tuple(
                (sequence.sequence_id, start, num_new)
                for sequence, start, num_new in zip(
                    plan.sequences, plan.starts, plan.num_new, strict=True
                )
            )
            self.bus.emit(StepPlanned(self.step, rows, len(self.waiting), len(self._running)))
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
            num_new = min(behind, budget)
            grown = self._make_room(plan, sequence, start, start + num_new)
            plan.drop_waiting()
            if grown:
                plan.append(sequence, num_new)
                budget -= num_new
        return budget

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Start waiting sequences in order, until one finds no budget or no blocks."""
        admitted = 0
        for sequence in self.waiting:
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
        del self.waiting[:admitted]

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
            ids = self.step, sequence.sequence_id
            total = sequence.num_tokens
            self.bus.emit(
                PrefixHit(*ids, num_cached, total, reason)
                if num_cached
                else PrefixMiss(*ids, total, reason)
            )
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
        self.waiting.insert(0, sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.metrics.num_preemptions += 1

    def _policy_failed(self, name: str, trace: str) -> None:
        if self.bus:
            self.bus.emit(PolicyFailed(self.step, name, trace))

    # --- results ------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, sampled: SampledTokens) -> list[Sequence]:
        """Take a step's results in: advance every row, append its token; return what finished."""
        with shielded():
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
        sequences, logprobs = plan.sequences, sampled.logprobs
        for i, (row, token_id) in enumerate(zip(plan.sampled, sampled.token_ids, strict=True)):
            sequence = sequences[row]
            if sequence.status is not Status.RUNNING:
                continue
            sequence.token_ids.append(token_id)
            if len(sequence.token_ids) - sequence.num_prompt_tokens == 1:
                sequence.metrics.first_token = time.monotonic()
            if logprobs is not None and (entry := logprobs[i]) is not None:
                sequence.logprobs = sequence.logprobs or []
                sequence.logprobs.append(entry)
            if ends(sequence, token_id):
                finished.append(sequence)
        for sequence in finished:
            assert sequence.finish_reason is not None
            self.finish(sequence, sequence.finish_reason)
        return finished

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence in any state and release its blocks; idempotent."""
        if sequence.status is Status.FINISHED:
            return
        with shielded():
            if sequence.status is Status.RUNNING:
                self.blocks.free(sequence.sequence_id)
                del self._running[sequence.sequence_id]
            else:
                self.waiting.remove(sequence)
            sequence.status = Status.FINISHED
            sequence.finish_reason = reason
            sequence.metrics.finished = time.monotonic()
            sequence.metrics.num_output_tokens = sequence.num_output_tokens
        if self.bus:
            ids = self.step, sequence.request.request_id, sequence.sequence_id
            self.bus.emit(RequestFinished(*ids, reason, sequence.num_output_tokens))

    def describe(self) -> dict[str, Any]:
        """Return the queues and the budgets."""
        return {
            "waiting": len(self.waiting),
            "running": len(self._running),
            "policy": policy_name(self.policy),
            "max_batch_tokens": self.config.max_batch_tokens,
            "max_sequences": self.config.max_sequences,
            "chunked_prefill": self.config.chunked_prefill,
            "prefix_reuse": self.config.prefix_reuse,
        }
