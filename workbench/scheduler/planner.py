"""`Planner`: fills a step's plan, row by row, until a budget or the blocks run out.

Decodes first, then prompts: those that run and are further behind, and waiting ones in policy
order, as many as the capacity policy lets start. Called by `Scheduler.schedule` alone, under its
books.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from workbench.batch import StepPlan
from workbench.cache import PrefixLookup, room
from workbench.config import SchedulerConfig
from workbench.draft import Draft
from workbench.request import Sequence, Status
from workbench.scheduler.adapters import AdapterWaits
from workbench.scheduler.capacity import CAPACITIES
from workbench.scheduler.chunking import sharing
from workbench.scheduler.dropping import Dropper
from workbench.scheduler.guard import GuardedPolicy
from workbench.scheduler.lending import take_back
from workbench.scheduler.queues import Queues

# Sequences found in one step to wait for a prefix. It bounds what looking for them takes; those
# behind are looked at in the next step, when these are known.
MAX_FOUND_WAITING = 32


class Planner:
    """Plans over `queues` and their blocks, within the budgets of `config`, in `order`."""

    def __init__(
        self, queues: Queues, config: SchedulerConfig, order: GuardedPolicy, dropper: Dropper
    ) -> None:
        self.queues, self.order, self.dropper = queues, order, dropper
        self.blocks = queues.blocks
        self.adapters = AdapterWaits(queues)
        self.configure(config)

    def configure(self, config: SchedulerConfig) -> None:
        """Plan by other settings from now on."""
        self.config = config
        self.capacity = CAPACITIES[config.capacity]
        self.sharing = sharing(config)
        self.prefix_wait = config.prefix_reuse and config.prefix_wait

    def fill(self, plan: StepPlan, drafts: Mapping[int, Draft]) -> None:
        """Add rows to an empty plan, with blocks allocated for everything in it.

        drafts: by sequence id, what its next row would verify.
        """
        self.adapters.begin(plan.step)
        prompts = self._decodes(plan)
        # Below zero where the limits were lowered under what runs: that goes on, and prompts wait.
        budget = max(0, self.config.max_batch_tokens - plan.num_decodes)
        if self.config.max_prefill_tokens is not None:
            budget = min(budget, self.config.max_prefill_tokens)
        if not plan.preempted:  # what was just evicted must not come straight back
            self._admit(prompts, budget)
        while not prompts and not plan.num_decodes and self._make_way(plan):
            self._admit(prompts, budget)
        plan.ended += self.adapters.end_lost()
        self._chunks(plan, prompts, budget)
        if drafts:
            self._drafts(plan, drafts)
        plan.copies = list(self.blocks.pending_copies)

    def _decodes(self, plan: StepPlan) -> list[Sequence]:
        """Plan the sequences that are one token behind; they come first in the packed batch.

        Returns the running ones that are further behind.
        """
        tables = self.blocks.tables
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
            prompts = [s for s in prompts if s.status is Status.RUNNING]
        return prompts

    def _admit(self, prompts: list[Sequence], budget: int) -> None:
        """Start waiting sequences in order, until one finds no budget or no blocks.

        They are added to `prompts`, those that share the budget of this step. Who waits for a
        prefix that one of these computes is passed over.
        """
        waiting, running = self.queues.waiting, self.queues.running
        if not waiting:
            return
        prefix_waits, found_waiting = self.queues.prefix_waits, 0
        prefix_waits.forget_leaders()
        for sequence in prompts if self.prefix_wait else ():
            prefix_waits.lead(sequence)
        left = budget - sum(self.sharing.claim(s.num_tokens - s.num_computed) for s in prompts)
        reserved = self._reserved()
        num_before = len(prompts)
        for sequence in waiting:
            if left <= 0 or len(running) >= self.config.max_sequences:
                break
            if prefix_waits.holds(sequence) or self.adapters.holds(sequence):
                continue
            if not self._start(sequence, left, reserved, first=not prompts):
                break
            if sequence.status is Status.WAITING:
                found_waiting += 1
                if found_waiting == MAX_FOUND_WAITING:
                    break
                continue
            self._reserve(reserved, sequence)
            left -= self.sharing.claim(sequence.num_tokens - sequence.num_computed)
            prompts.append(sequence)
            if self.prefix_wait:
                prefix_waits.lead(sequence)
        if len(prompts) > num_before:
            waiting[:] = [s for s in waiting if s.status is Status.WAITING]

    def _start(self, sequence: Sequence, left: int, reserved: list[int], *, first: bool) -> bool:
        """Run a waiting sequence, unless it waits for a prefix; False, with nothing changed, if
        budget or blocks do not allow it."""
        if sequence.sequence_id in self.queues.holding:
            self.queues.go_on(sequence)
            return True
        kept = lookup = self.queues.swapper.find(sequence.sequence_id)
        if kept is None and self.config.prefix_reuse:
            lookup = self._lookup(sequence, reserved)
            waits = self.prefix_wait and not self.dropper.replays(sequence)
            if waits and self.queues.awaits_prefix(sequence, lookup):
                return True
        behind = sequence.num_tokens - (lookup.num_tokens if lookup else 0)
        if not self.sharing.joins(behind, left, first):
            return False
        while not self._fits(sequence, lookup, reserved):
            if not take_back(self.blocks, self.queues.running.values()):
                return False
            reserved[:] = self._reserved()
        if kept is not None:
            self.queues.swap_in(sequence, kept)
        else:
            self.queues.start(sequence, lookup)
        return True

    def _chunks(self, plan: StepPlan, prompts: list[Sequence], budget: int) -> None:
        """Plan the prompts, each with its share of the budget."""
        if not prompts:
            return
        lacking = [self.dropper.at_once(s, s.num_tokens - s.num_computed) for s in prompts]
        for sequence, num_new in zip(prompts, self.sharing.share(lacking, budget), strict=True):
            if num_new == 0 or sequence.status is not Status.RUNNING:
                continue
            start = sequence.num_computed
            grown = self._make_room(plan, sequence, start, start + num_new)
            plan.drop_waiting()
            if grown:
                plan.append(sequence, num_new)

    def _drafts(self, plan: StepPlan, drafts: Mapping[int, Draft]) -> None:
        """Give decode rows their drafts, as far as tokens and blocks are left that nobody wants.

        Nobody is put off or preempted for a guess: a draft is cut to what there is room for.
        """
        left = self.config.max_batch_tokens - plan.num_tokens
        given: dict[int, Draft] = {}
        for row, sequence in enumerate(plan.sequences[: plan.num_decodes]):
            draft = drafts.get(sequence.sequence_id)
            if draft is None:
                continue
            draft, stop, number = draft.first(left), plan.starts[row] + 1, sequence.sequence_id
            if stop + len(draft) > self.blocks.tables[number].writable_to:
                while len(draft) and self.blocks.lacks(number, stop, stop + len(draft)):
                    draft = draft.first(len(draft) - 1)
                if len(draft):
                    self.blocks.grow(number, stop, stop + len(draft))
            if len(draft):
                given[row], left = draft, left - len(draft)
        if given:
            plan.draft(given)

    def retract(self, plan: StepPlan) -> None:
        """Take back the blocks that the drafts of a plan were given."""
        for row in plan.drafts:
            sequence = plan.sequences[row]
            if sequence.sequence_id in self.blocks.tables:
                self.blocks.shrink(sequence.sequence_id, sequence.num_computed)

    def _lookup(self, sequence: Sequence, reserved: list[int]) -> PrefixLookup:
        """Return the cached prefix that a sequence may use.

        A forward pass says nothing of cached tokens, so one that reports on each of its tokens uses
        those alone that it has reported on. Under a dropping policy only a prompt is shared.
        """
        known, namespace = self.dropper.num_reusable(sequence), sequence.request.namespace
        names, partial = self.queues.names(sequence), self.config.partial_reuse
        limited = known < sequence.num_tokens - 1
        tokens = sequence.token_ids[: known + 1] if limited else sequence.token_ids
        explain = bool(self.queues.bus)
        asked = tokens, namespace, names
        found = self.blocks.lookup(*asked, partial=partial, explain=explain)
        # A copy takes a block more.
        if found.num_copied and not self._fits(sequence, found, reserved):
            found = self.blocks.lookup(*asked, partial=False, explain=explain)
        if not limited or found.num_tokens + self.blocks.block_size <= known:
            return found
        if known < sequence.num_reusable:
            reason = f"a policy drops blocks: tokens from {known} on are the sequence's own"
            return replace(found, reason=reason, cause="dropping")
        reason = f"the request asks about every token from {known} on"
        return replace(found, reason=reason, cause="asked")

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
        # Those that it gave way for come first now, or it would take its place straight back.
        lost = {sequence.sequence_id for sequence in plan.preempted}
        queues.waiting.sort(key=lambda sequence: sequence.sequence_id in lost)
        return True

    def _reserved(self) -> list[int]:
        """Return how many blocks of each KV group are kept for sequences that have a table."""
        reserved = [0] * len(self.blocks.groups)
        for sequence in [*self.queues.running.values(), *self.queues.holding.values()]:
            if self.capacity.reserves(sequence):
                self._reserve(reserved, sequence)
        return reserved

    def _reserve(self, reserved: list[int], sequence: Sequence) -> None:
        """Add what a sequence may still take to what is kept."""
        start, length = sequence.num_computed, self.capacity.length(sequence)
        max_new = self.config.max_new_tokens(length)
        taken = room.may_take(self.blocks, sequence.sequence_id, start, length, max_new)
        for place, count in enumerate(taken):
            reserved[place] += count

    def _fits(self, sequence: Sequence, lookup: PrefixLookup | None, reserved: list[int]) -> bool:
        """Whether the blocks that others leave are enough for all it is counted with."""
        length = self.capacity.length(sequence)
        return room.fits(self.blocks, lookup, length, self.config.max_new_tokens(length), reserved)

    def may_fork(self, parent: Sequence, child: Sequence, num_shared: int) -> bool:
        """Whether a fork may run at once: there is a place, what it looks at is still there, and
        there is room beside the blocks it shares.

        Under `max_utilization` a fork starts whatever the blocks; it preempts where it must.
        """
        number, blocks = parent.sequence_id, self.blocks
        full = len(self.queues.running) >= self.config.max_sequences
        if full or not blocks.can_fork(number, num_shared):
            return False
        if self.config.capacity != "guaranteed_no_evict":
            return True
        length = self.capacity.length(child)
        max_new = self.config.max_new_tokens(length)
        return room.fork_fits(blocks, number, num_shared, length, max_new, self._reserved())

    def _make_room(self, plan: StepPlan, sequence: Sequence, start: int, stop: int) -> bool:
        """Grow a table, preempting while blocks lack; False if this sequence was.

        Paused sequences lose their blocks before any that runs.
        """
        blocks, queues = self.blocks, self.queues
        blocks.trim(sequence.sequence_id, start)
        while blocks.lacks(sequence.sequence_id, start, stop):
            if take_back(blocks, queues.running.values()):
                continue
            victim = self.order.last((queues.holding or queues.running).values())
            self.queues.preempt(victim, f"no free block for sequence {sequence.sequence_id}")
            plan.preempted.append(victim)
            if victim is sequence:
                return False
        blocks.grow(sequence.sequence_id, start, stop)
        return True
