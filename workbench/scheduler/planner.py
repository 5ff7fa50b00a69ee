"""`Planner`: fills a step's plan, row by row, until a budget or the blocks run out.

Decodes first, then prompts: those that run and are further behind, and waiting ones in policy
order, as many as the capacity policy lets start. Called by `Scheduler.schedule` alone, under its
books.
"""

from __future__ import annotations

from dataclasses import replace

from workbench.batch import StepPlan
from workbench.cache import PrefixLookup
from workbench.config import SchedulerConfig
from workbench.request import Sequence, Status
from workbench.scheduler.capacity import CAPACITIES
from workbench.scheduler.chunking import sharing
from workbench.scheduler.guard import GuardedPolicy
from workbench.scheduler.queues import Queues


class Planner:
    """Plans over `queues` and their blocks, within the budgets of `config`, in `order`."""

    def __init__(self, queues: Queues, config: SchedulerConfig, order: GuardedPolicy) -> None:
        self.queues, self.config, self.order = queues, config, order
        self.blocks = queues.blocks
        self.capacity = CAPACITIES[config.capacity]
        self.sharing = sharing(config)

    def fill(self, plan: StepPlan) -> None:
        """Add rows to an empty plan, with blocks allocated for everything in it."""
        prompts = self._decodes(plan)
        budget = self.config.max_batch_tokens - plan.num_decodes
        if self.config.max_prefill_tokens is not None:
            budget = min(budget, self.config.max_prefill_tokens)
        if not plan.preempted:  # what was just evicted must not come straight back
            self._admit(prompts, budget)
        while not prompts and not plan.num_decodes and self._make_way(plan):
            self._admit(prompts, budget)
        self._chunks(plan, prompts, budget)
        plan.copies = list(self.blocks.pending_copies)

    def _decodes(self, plan: StepPlan) -> list[Sequence]:
        """Plan the sequences that are one token behind; they come first in the packed batch.

        Returns the running ones that are further behind.
        """
        blocks, block_size = self.blocks, self.blocks.block_size
        tables, ref_counts = blocks.tables, blocks.ref_counts
        sequences, starts = plan.sequences, plan.starts
        prompts: list[Sequence] = []
        for sequence in list(self.queues.running.values()):
            start = sequence.num_computed
            behind = len(sequence.token_ids) - start
            if behind != 1 or sequence.status is not Status.RUNNING:
                if behind > 1:  # 0 behind: its chooser has not decided yet
                    prompts.append(sequence)
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
            prompts = [s for s in prompts if s.status is Status.RUNNING]
        return prompts

    def _admit(self, prompts: list[Sequence], budget: int) -> None:
        """Start waiting sequences in order, until one finds no budget or no blocks.

        They are added to `prompts`, those that share the budget of this step.
        """
        waiting, running = self.queues.waiting, self.queues.running
        if not waiting:
            return
        left = budget - sum(self.sharing.claim(s.num_tokens - s.num_computed) for s in prompts)
        holders = [*running.values(), *self.queues.holding.values()]
        reserved = self.capacity.reserve(self.blocks, holders)
        admitted = 0
        for sequence in waiting:
            if left <= 0 or len(running) >= self.config.max_sequences:
                break
            if not self._start(sequence, left, reserved, first=not prompts):
                break
            start = sequence.num_computed
            length = self.capacity.length(sequence)
            reserved += self.blocks.num_missing(sequence.sequence_id, start, length)
            left -= self.sharing.claim(sequence.num_tokens - start)
            prompts.append(sequence)
            admitted += 1
        del waiting[:admitted]

    def _start(self, sequence: Sequence, left: int, reserved: int, *, first: bool) -> bool:
        """Run a waiting sequence if budget and blocks allow it; return whether they did."""
        if sequence.sequence_id in self.queues.holding:
            self.queues.go_on(sequence)
            return True
        kept = lookup = self.queues.swapper.find(sequence.sequence_id)
        if kept is None and self.config.prefix_reuse:
            lookup = self._lookup(sequence)
        behind = sequence.num_tokens - (lookup.num_tokens if lookup else 0)
        if not self.sharing.joins(behind, left, first):
            return False
        if not self._fits(sequence, lookup.block_ids if lookup else (), reserved):
            return False
        if kept is not None:
            self.queues.swap_in(sequence, kept)
        else:
            self.queues.start(sequence, lookup)
        return True

    def _chunks(self, plan: StepPlan, prompts: list[Sequence], budget: int) -> None:
        """Plan the prompts, each with its share of the budget."""
        if not prompts:
            return
        lacking = [s.num_tokens - s.num_computed for s in prompts]
        for sequence, num_new in zip(prompts, self.sharing.share(lacking, budget), strict=True):
            if num_new == 0 or sequence.status is not Status.RUNNING:
                continue
            start = sequence.num_computed
            grown = self._make_room(plan, sequence, start, start + num_new)
            plan.drop_waiting()
            if grown:
                plan.append(sequence, num_new)

    def _lookup(self, sequence: Sequence) -> PrefixLookup:
        """Return the cached prefix that a sequence may use.

        A forward pass says nothing of cached tokens, so one that reports on each of its tokens uses
        those alone that it has reported on.
        """
        known, namespace = sequence.num_reusable, sequence.request.namespace
        names = self.queues.names(sequence)
        if known >= sequence.num_tokens - 1:
            return self.blocks.lookup(sequence.token_ids, namespace, names)
        found = self.blocks.lookup(sequence.token_ids[: known + 1], namespace, names)
        if found.num_tokens + self.blocks.block_size <= known:
            return found
        return replace(found, reason=f"the request asks about every token from {known} on")

    def _make_way(self, plan: StepPlan) -> bool:
        """Where nothing can run, take the place of one for those that wait; whether there was one.

        First of a paused sequence; then of a beam that waits for its chooser, who may be waiting
        for just these (what it has reported stays known).
        """
        queues = self.queues
        if not queues.waiting or not (queues.holding or queues.running):
            return False
        victim = self.order.last((queues.holding or queues.running).values())
        causes = "others that it waits for need its place", "paused, and nothing else can run"
        queues.preempt(victim, causes[bool(queues.holding)])
        plan.preempted.append(victim)
        self.order.sort(queues.waiting)
        return True

    def _fits(self, sequence: Sequence, found: tuple[int, ...], reserved: int) -> bool:
        """Whether the blocks that others leave are enough for all it is counted with."""
        revived = sum(1 for block_id in found if self.blocks.ref_counts[block_id] == 0)
        needed = self.blocks.blocks_for(self.capacity.length(sequence)) - len(found)
        return needed + revived + reserved <= self.blocks.num_free

    def may_fork(self, child: Sequence, num_shared: int) -> bool:
        """Whether a fork may run at once: there is a place, and room beside the blocks it shares.

        Of a shared block that both write, each may need a copy. Under `max_utilization` a fork
        starts whatever the blocks; it preempts where it must.
        """
        running = self.queues.running
        if len(running) >= self.config.max_sequences:
            return False
        if self.config.capacity != "guaranteed_no_evict":
            return True
        size = self.blocks.block_size
        needed = self.blocks.blocks_for(self.capacity.length(child)) - num_shared // size
        copied = 1 if num_shared % size else 0
        holders = [*running.values(), *self.queues.holding.values()]
        reserved = self.capacity.reserve(self.blocks, holders)
        return needed + copied + reserved <= self.blocks.num_free

    def _make_room(self, plan: StepPlan, sequence: Sequence, start: int, stop: int) -> bool:
        """Grow a table, preempting while blocks lack; False if this sequence was.

        Paused sequences lose their blocks before any that runs.
        """
        blocks, queues = self.blocks, self.queues
        while blocks.num_missing(sequence.sequence_id, start, stop) > blocks.num_free:
            victim = self.order.last((queues.holding or queues.running).values())
            self.queues.preempt(victim, f"no free block for sequence {sequence.sequence_id}")
            plan.preempted.append(victim)
            if victim is sequence:
                return False
        blocks.grow(sequence.sequence_id, start, stop)
        return True
