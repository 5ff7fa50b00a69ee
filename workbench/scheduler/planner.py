"""`Planner`: fills a step's plan, row by row, until a budget or the blocks run out.

Decodes first, then running sequences that are further behind (chunks of a prompt), then waiting
ones in policy order. Called by `Scheduler.schedule` alone, under its books.
"""

from __future__ import annotations

from dataclasses import replace

from workbench.batch import StepPlan
from workbench.cache import PrefixLookup
from workbench.config import SchedulerConfig
from workbench.request import Sequence, Status
from workbench.scheduler.policy import GuardedPolicy
from workbench.scheduler.queues import Queues


class Planner:
    """Plans over `queues` and their blocks, within the budgets of `config`, in `order`."""

    def __init__(self, queues: Queues, config: SchedulerConfig, order: GuardedPolicy) -> None:
        self.queues, self.config, self.order = queues, config, order
        self.blocks = queues.blocks

    def fill(self, plan: StepPlan) -> None:
        """Add rows to an empty plan, with blocks allocated for everything in it."""
        budget = self._decodes(plan, self.config.max_batch_tokens)
        budget = self._chunks(plan, budget)
        if not plan.preempted:  # what was just evicted must not come straight back
            self._admit(plan, budget)
        if not plan:
            self._replace_idle(plan, budget)
        plan.copies = list(self.blocks.pending_copies)

    def _decodes(self, plan: StepPlan, budget: int) -> int:
        """Plan the sequences that are one token behind; they come first in the packed batch."""
        tables = self.blocks.tables
        sequences, starts = plan.sequences, plan.starts
        for sequence in list(self.queues.running.values()):
            start = sequence.num_computed
            if len(sequence.token_ids) - start != 1 or sequence.status is not Status.RUNNING:
                continue
            # Usual case, inlined because it is run for every sequence in every step: the last block
            # has room and nobody shares it.
            full = start >= tables[sequence.sequence_id].writable_to
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

    def _chunks(self, plan: StepPlan, budget: int) -> int:
        """Plan running sequences that are further behind: chunks of a prompt."""
        for sequence in list(self.queues.running.values()):
            start, behind = sequence.num_computed, sequence.num_tokens - sequence.num_computed
            if behind <= 1 or sequence.status is not Status.RUNNING or budget <= 0:
                continue  # 0 behind: its chooser has not decided yet
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
        waiting, running = self.queues.waiting, self.queues.running
        admitted = 0
        for sequence in waiting:
            if budget <= 0 or len(running) >= self.config.max_sequences:
                break
            lookup = self._lookup(sequence)
            num_cached = lookup.num_tokens if lookup else 0
            behind = sequence.num_tokens - num_cached
            if not self._may_start(plan, behind, budget):
                break
            if not self._fits(sequence, lookup):
                break
            request = sequence.request
            self.blocks.open(sequence.sequence_id, lookup, request.namespace, request.retention)
            reason = lookup.reason if lookup else "prefix reuse is off"
            self.queues.start(sequence, num_cached, reason)
            num_new = min(behind, budget) if self.config.chunked_prefill else behind
            self.blocks.grow(sequence.sequence_id, num_cached, num_cached + num_new)
            plan.append(sequence, num_new)
            budget -= num_new
            admitted += 1
        del waiting[:admitted]

    def _replace_idle(self, plan: StepPlan, budget: int) -> None:
        """Where only sequences run that wait for their chooser, let waiting ones take their place.

        The chooser may be waiting for just these; what a preempted beam has reported stays known.
        """
        while self.queues.waiting and self.queues.running and not plan:
            victim = self.order.last(self.queues.running.values())
            self.queues.preempt(victim, "others that it waits for need its place")
            plan.preempted.append(victim)
            self.order.sort(self.queues.waiting)
            self._admit(plan, budget)

    def _lookup(self, sequence: Sequence) -> PrefixLookup | None:
        """Return the cached prefix that a sequence may use; None with prefix reuse off.

        A forward pass says nothing of cached tokens, so one that reports on each of its tokens uses
        those alone that it has reported on.
        """
        if not self.config.prefix_reuse:
            return None
        known, namespace = sequence.num_reusable, sequence.request.namespace
        limited = known < sequence.num_tokens - 1
        tokens = sequence.token_ids[: known + 1] if limited else sequence.token_ids
        found = self.blocks.lookup(tokens, namespace, partial=self.config.partial_reuse)
        if found.num_copied and not self._fits(sequence, found):  # a copy takes a block more
            found = self.blocks.lookup(tokens, namespace, partial=False)
        if not limited or found.num_tokens + self.blocks.block_size <= known:
            return found
        return replace(found, reason=f"the request asks about every token from {known} on")

    def _may_start(self, plan: StepPlan, behind: int, budget: int) -> bool:
        """Whether the budget allows it: an unsplittable prompt may exceed it, but one at a time."""
        alone = len(plan.sequences) == plan.num_decodes
        return self.config.chunked_prefill or behind <= budget or alone

    def _fits(self, sequence: Sequence, lookup: PrefixLookup | None) -> bool:
        """Whether all its tokens fit into free blocks, so that it can start undisturbed."""
        length = sequence.num_tokens
        max_new = self.config.max_new_tokens(length)
        return self.blocks.fits(lookup, length, max_new)

    def _make_room(self, plan: StepPlan, sequence: Sequence, start: int, stop: int) -> bool:
        """Grow a table, preempting while blocks lack; False if this sequence was."""
        blocks = self.blocks
        blocks.trim(sequence.sequence_id, start)
        while blocks.lacks(sequence.sequence_id, start, stop):
            victim = self.order.last(self.queues.running.values())
            self.queues.preempt(victim, f"no free block for sequence {sequence.sequence_id}")
            plan.preempted.append(victim)
            if victim is sequence:
                return False
        blocks.grow(sequence.sequence_id, start, stop)
        return True
