"""A random walk over all that may be done to a scheduler; everything is checked after each."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from shadow import ShadowModel, TransferFailed, make_sequence

from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.request import Sequence, Status
from workbench.scheduler import POLICIES, Scheduler

PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=24)


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler over a small cache, so that preemption and eviction are common."""

    @initialize(
        num_blocks=st.integers(6, 24),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_sequences=st.integers(1, 6),
        budget=st.integers(6, 40),
        chunked=st.booleans(),
        reuse=st.booleans(),
        host_blocks=st.sampled_from([0, 1, 5, 40]),
        capacity=st.sampled_from(["max_utilization", "guaranteed_no_evict"]),
        swap=st.booleans(),
        chunking=st.sampled_from(["first_come", "equal_progress"]),
        max_prefill=st.sampled_from([None, 3]),
    )
    def build(
        self,
        num_blocks,
        block_size,
        max_sequences,
        budget,
        chunked,
        reuse,
        host_blocks,
        capacity,
        swap,
        chunking,
        max_prefill,
    ):
        self.cache = KVCache(
            num_layers=0,
            num_kv_heads=1,
            head_dim=1,
            num_blocks=num_blocks,
            block_size=block_size,
            num_host_blocks=host_blocks,
        )
        config = SchedulerConfig(
            max_batch_tokens=budget,
            max_sequences=max_sequences,
            chunked_prefill=chunked,
            prefix_reuse=reuse,
            capacity=capacity,
            preemption="swap" if swap and host_blocks else "recompute",
            chunking=chunking,
            max_prefill_tokens=max_prefill,
        )
        self.scheduler = Scheduler(self.cache, config)
        self.model = ShadowModel(self.cache.blocks)
        self.alive: list[Sequence] = []
        self.done: list[Sequence] = []
        self.count = 0

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 12),
        namespace=st.sampled_from(["", "other"]),
        priority=st.integers(0, 2),
    )
    def add(self, prompt, max_tokens, namespace, priority):
        capacity = self.cache.num_blocks * self.cache.block_size
        if len(prompt) + max_tokens - 1 > capacity:
            return  # the engine refuses such a request when it is added
        sequence = make_sequence(
            self.count, prompt, max_tokens, namespace=namespace, priority=priority
        )
        self.count += 1
        self.scheduler.add(sequence)
        self.alive.append(sequence)

    @rule()
    def step(self):
        before = {s.sequence_id: s.num_tokens for s in self.alive}
        plan = self.plan()
        self.model.transfers_left = 10**9
        finished = self.scheduler.commit(plan, self.model.run(plan))
        for sequence in plan.sequences:
            made = sequence.num_tokens - before[sequence.sequence_id]
            assert made in (0, 1)
        self._retire(finished)

    @rule(data=st.data(), max_tokens=st.integers(1, 12))
    def fork(self, data, max_tokens):
        if not self.alive:
            return
        parent = data.draw(st.sampled_from(self.alive))
        capacity = self.cache.num_blocks * self.cache.block_size
        if parent.num_tokens + max_tokens - 1 > capacity:
            return
        child = make_sequence(
            self.count, parent.token_ids, max_tokens, namespace=parent.request.namespace
        )
        self.count += 1
        self.scheduler.fork(parent, child)
        self.alive.append(child)

    def plan(self):
        """Plan a step and check what holds of every plan."""
        running = {s.sequence_id for s in self.scheduler.running}
        plan = self.scheduler.schedule()
        config = self.scheduler.config
        assert len(plan.sequences) <= config.max_sequences
        assert 0 not in plan.num_new
        prefill = plan.num_tokens - plan.num_decodes
        if config.chunked_prefill:
            assert plan.num_tokens <= config.max_batch_tokens
            assert prefill <= (config.max_prefill_tokens or prefill)
        assert plan.num_new[: plan.num_decodes] == [1] * plan.num_decodes
        waits = any(s.status is not Status.PAUSED for s in self.alive)
        assert bool(plan) == waits, "work waits and nothing was planned"
        if config.capacity == "guaranteed_no_evict":
            lost = {s.sequence_id for s in plan.preempted}
            assert not lost & running, "a running sequence was preempted"
        return plan

    @rule(failures=st.integers(1, 2), transfers=st.integers(0, 12))
    def failed_step(self, failures, transfers):
        """A forward pass that fails: planned, perhaps half run, never committed."""
        for number in range(failures):
            plan = self.plan()
            self.model.transfers_left = transfers
            with suppress(TransferFailed):
                if number:
                    self.model.run(plan)

    @rule(data=st.data(), release=st.booleans())
    def pause(self, data, release):
        if self.alive:
            sequence = data.draw(st.sampled_from(self.alive))
            self.scheduler.pause(sequence, release=release)
            assert sequence.status is Status.PAUSED
            assert not release or sequence.sequence_id not in self.cache.blocks.tables

    @rule(data=st.data())
    def resume(self, data):
        if self.alive:
            sequence = data.draw(st.sampled_from(self.alive))
            self.scheduler.resume(sequence)
            assert sequence.status is not Status.PAUSED

    @rule()
    def clear_cached(self):
        self.cache.blocks.clear_cached()

    @rule(data=st.data())
    def abort(self, data):
        if self.alive:
            sequence = data.draw(st.sampled_from(self.alive))
            self.scheduler.finish(sequence, "abort")
            self._retire([sequence])

    @rule(name=st.sampled_from(sorted(POLICIES)))
    def swap_policy(self, name):
        self.scheduler.policy = POLICIES[name]

    @rule()
    def drain(self):
        for sequence in self.alive:
            self.scheduler.resume(sequence)
        for _ in range(2000):
            if not self.alive:
                break
            self.step()
        assert not self.alive, "a sequence never ended"
        assert self.cache.blocks.num_free == self.cache.num_blocks
        host = self.cache.blocks.host
        assert host is None or host.num_free == host.num_slots, "a slot is held for nobody"

    def _retire(self, sequences):
        for sequence in sequences:
            assert sequence.status is Status.FINISHED
            self.alive.remove(sequence)
            self.done.append(sequence)

    @invariant()
    def whole(self):
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        scheduler, tables = self.scheduler, set(self.cache.blocks.tables)
        waiting, running, paused = (
            {s.sequence_id for s in queue}
            for queue in (scheduler.waiting, scheduler.running, scheduler.paused)
        )
        assert sorted([*waiting, *running, *paused]) == sorted(s.sequence_id for s in self.alive)
        holding = {s.sequence_id for s in scheduler.holding}
        assert holding <= waiting | paused
        assert tables == running | holding, "a table without a sequence that runs or may go on"
        if self.cache.blocks.host is not None:
            assert set(self.cache.blocks.host.swapped) <= (waiting | paused) - holding

    @invariant()
    def tokens_are_those_of_a_run_alone(self):
        for sequence in [*getattr(self, "alive", []), *getattr(self, "done", [])]:
            tokens = sequence.token_ids[: sequence.num_prompt_tokens]
            for token in sequence.output_token_ids:
                assert token == self.model.next_token(tokens)
                tokens = [*tokens, token]

    def teardown(self):
        if hasattr(self, "cache"):
            self.drain()


TestScheduler = pytest.mark.timeout(300)(SchedulerMachine.TestCase)
TestScheduler.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
