"""`Scheduler`: decides each step's batch and takes its results in.

One rule, no phases: every sequence has `num_computed` and `num_tokens`, and a step lets it catch up by
some tokens. A prompt, a chunk of one, a decode and a resume after preemption are cases of that rule. The
scheduler is the one writer of `Sequence` and drives the cache's block manager; it never sees a tensor.
"""

from __future__ import annotations

import time
import traceback
import warnings
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
from workbench.scheduler.policy import Policy, fcfs, get_policy, policy_name


class Scheduler(Described):
    """Continuous batching over a KV cache.

    `waiting` and `running` are the two queues; `policy` orders admission and, reversed, preemption, and
    may be replaced between steps. `schedule()` and `commit()` alternate; if a step fails between them,
    the next `schedule()` plans the same work again and nothing leaks.
    """

    def __init__(self, cache: KVCache, config: SchedulerConfig | None = None) -> None:
        self.config = config or SchedulerConfig()
        self.blocks = cache.blocks
        self.policy: Policy = get_policy(self.config.policy)
        self.bus = EventBus()
        self.waiting: list[Sequence] = []
        self._running: dict[int, Sequence] = {}  # by sequence id, in order of admission
        self.step = 0

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
        """Queue `child`, which begins as a copy of `parent`'s tokens, sharing its blocks if it may run.

        Blocks are copied when either first writes to a shared one. Where no place is left to run, the
        child waits like any other and finds what it can in the prefix cache.
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
        self._order_waiting()
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
            self._announce(plan)
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
            if index >= len(block_ids) or ref_counts[block_ids[index]] > 1:
                if not self._make_room(plan, sequence, start, start + 1):
                    continue
            sequences.append(sequence)
            starts.append(start)
        self._drop_preempted(plan)
        count = plan.num_decodes = len(plan.sequences)
        plan.num_new = [1] * count
        plan.sampled = list(range(count))
        return budget - count

    def _plan_chunks(self, plan: StepPlan, budget: int) -> int:
        """Plan running sequences that are further behind: chunks of a prompt."""
        for sequence in self.running:
            start, behind = sequence.num_computed, sequence.num_tokens - sequence.num_computed
            if behind == 1 or sequence.status is not Status.RUNNING or budget <= 0:
                continue
            num_new = min(behind, budget)
            grown = self._make_room(plan, sequence, start, start + num_new)
            self._drop_preempted(plan)
            if grown:
                self._append_row(plan, sequence, num_new)
                budget -= num_new
        return budget

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Start waiting sequences, in order, while budgets and blocks last; stop at the first that waits."""
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
            self._append_row(plan, sequence, num_new)
            budget -= num_new
            admitted += 1
        del self.waiting[:admitted]

    def _may_start(self, plan: StepPlan, behind: int, budget: int) -> bool:
        """Whether the budget allows it: an unsplittable prompt may exceed it, but one at a time."""
        alone = len(plan.sequences) == plan.num_decodes
        return self.config.chunked_prefill or behind <= budget or alone

    def _fits(self, sequence: Sequence, found: tuple[int, ...]) -> bool:
        """Whether all its tokens fit into free blocks, so that it is not preempted while it starts."""
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

    def _append_row(self, plan: StepPlan, sequence: Sequence, num_new: int) -> None:
        if sequence.num_computed + num_new == sequence.num_tokens:
            plan.sampled.append(len(plan.sequences))
        plan.sequences.append(sequence)
        plan.starts.append(sequence.num_computed)
        plan.num_new.append(num_new)

    def _make_room(self, plan: StepPlan, sequence: Sequence, start: int, stop: int) -> bool:
        """Grow a sequence's table, preempting others while blocks lack; False if it was preempted."""
        blocks = self.blocks
        while blocks.num_missing(sequence.sequence_id, start, stop) > blocks.num_free:
            victim = self._victim()
            self._preempt(victim, f"no free block for sequence {sequence.sequence_id}")
            plan.preempted.append(victim)
            if victim is sequence:
                return False
        blocks.grow(sequence.sequence_id, start, stop)
        return True

    def _victim(self) -> Sequence:
        """Return the running sequence that the policy puts last."""
        try:
            return max(self._running.values(), key=self.policy)
        except Exception as error:  # noqa: BLE001 - user code
            self._policy_failed(error)
            return max(self._running.values(), key=fcfs)

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

    def _drop_preempted(self, plan: StepPlan) -> None:
        """Take rows out of the plan whose sequence was preempted after it was planned."""
        if not plan.preempted:
            return
        rows = [i for i, s in enumerate(plan.sequences) if s.status is Status.RUNNING]
        if len(rows) == len(plan.sequences):
            return
        was_sampled = set(plan.sampled)
        plan.sampled = [new for new, old in enumerate(rows) if old in was_sampled]
        plan.num_decodes = sum(1 for row in rows if row < plan.num_decodes)
        plan.sequences = [plan.sequences[row] for row in rows]
        plan.starts = [plan.starts[row] for row in rows]
        plan.num_new = [plan.num_new[row] for row in rows] if plan.num_new else []

    # --- order --------------------------------------------------------------------------------

    def _order_waiting(self) -> None:
        """Sort the queue by the policy. User code: it may raise, and is then replaced and told of."""
        if len(self.waiting) < 2:
            return
        try:
            self.waiting.sort(key=self.policy)
        except Exception as error:  # noqa: BLE001 - user code
            self._policy_failed(error)
            self.waiting.sort(key=fcfs)

    def _policy_failed(self, error: Exception) -> None:
        name = policy_name(self.policy)
        trace = "".join(traceback.format_exception(error))
        self.policy = fcfs
        warnings.warn(f"policy {name!r} raised; using fcfs from now on:\n{trace}", stacklevel=3)
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
            if self._ends(sequence, token_id):
                finished.append(sequence)
        for sequence in finished:
            assert sequence.finish_reason is not None
            self.finish(sequence, sequence.finish_reason)
        return finished

    @staticmethod
    def _ends(sequence: Sequence, token_id: int) -> bool:
        """Whether this token ends the sequence; sets the reasons."""
        stop_string = sequence.stream.push(token_id) if sequence.stream is not None else None
        if stop_string is not None:
            sequence.finish_reason, sequence.stop_reason = "stop", stop_string
        elif token_id in sequence.stop_ids:
            sequence.finish_reason, sequence.stop_reason = "stop", token_id
        elif len(sequence.token_ids) >= sequence.max_num_tokens:
            sequence.finish_reason = "length"
        return sequence.finish_reason is not None

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
            request_id, count = sequence.request.request_id, sequence.num_output_tokens
            event = RequestFinished(self.step, request_id, sequence.sequence_id, reason, count)
            self.bus.emit(event)

    # --- showing ------------------------------------------------------------------------------

    def _announce(self, plan: StepPlan) -> None:
        rows = tuple(
            (sequence.sequence_id, start, num_new)
            for sequence, start, num_new in zip(
                plan.sequences, plan.starts, plan.num_new, strict=True
            )
        )
        self.bus.emit(StepPlanned(self.step, rows, len(self.waiting), len(self._running)))

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
