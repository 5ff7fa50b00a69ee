"""A random walk over add, step, fork, abort, failure and swap; all is checked after each."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from shadow import ShadowModel, make_sequence

from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.request import Sequence, Status
from workbench.retention import Retention, resolve
from workbench.scheduler import POLICIES, Scheduler

# Most begin alike, so that prefixes are met again, and end within a block.
SHARED = [i * i % 7 % 3 for i in range(40)]
TAILS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
PROMPTS = st.builds(lambda common, tail: SHARED[:common] + tail, st.integers(0, 32), TAILS)
SECONDS = st.sampled_from([None, 1e-6, 1e6])
RETENTION = st.one_of(
    st.just([]),
    st.builds(
        lambda cut, low, high, seconds: [
            Retention(0, cut, priority=low, seconds=seconds),
            Retention(cut, priority=high),
            Retention(priority=low, part="decode"),
        ],
        st.integers(1, 24),
        st.integers(0, 100),
        st.integers(0, 100),
        SECONDS,
    ),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler over a small cache, so that preemption and eviction are common."""

    @initialize(
        num_blocks=st.integers(6, 40),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_sequences=st.integers(1, 6),
        budget=st.integers(6, 40),
        chunked=st.booleans(),
        reuse=st.sampled_from([True, True, False]),
        partial=st.sampled_from([True, True, False]),
        windows=st.sampled_from([(None,), (None,), (3,), (7,), (None, 1), (None, 5, 9), (2, 4)]),
        beside=st.integers(0, 6),
    )
    def build(
        self,
        num_blocks,
        block_size,
        max_sequences,
        budget,
        chunked,
        reuse,
        partial,
        windows,
        beside,
    ):
        self.cache = KVCache(
            num_layers=len(windows),
            num_kv_heads=1,
            head_dim=1,
            num_blocks=num_blocks,
            block_size=block_size,
            windows=windows,
            window_blocks=max(1, num_blocks - beside),
        )
        config = SchedulerConfig(
            max_batch_tokens=budget,
            max_sequences=max_sequences,
            chunked_prefill=chunked,
            prefix_reuse=reuse,
            partial_reuse=partial,
        )
        self.scheduler = Scheduler(self.cache, config)
        self.model = ShadowModel(self.cache.blocks)
        self.alive: list[Sequence] = []
        self.done: list[Sequence] = []
        self.count = 0

    @rule(
        prompts=st.lists(PROMPTS, min_size=1, max_size=3),
        max_tokens=st.integers(1, 30),
        namespace=st.sampled_from(["", "", "", "other"]),
        priority=st.integers(0, 2),
        ranges=RETENTION,
    )
    def add(self, prompts, max_tokens, namespace, priority, ranges):
        for prompt in prompts:
            self.add_one(prompt, max_tokens, namespace, priority, ranges)

    def add_one(self, prompt, max_tokens, namespace, priority, ranges):
        if not self.fits(len(prompt) + max_tokens - 1):
            return  # the engine refuses such a request when it is added
        sequence = make_sequence(
            self.count,
            prompt,
            max_tokens,
            namespace=namespace,
            priority=priority,
            retention=resolve(ranges, len(prompt)),
        )
        self.count += 1
        self.scheduler.add(sequence)
        self.alive.append(sequence)

    def fits(self, num_tokens):
        """Whether a sequence that is alone fits each KV group, whatever it has come to hold."""
        max_new = self.scheduler.config.max_new_tokens(num_tokens)
        groups = self.cache.blocks.groups
        return all(group.peak(num_tokens, max_new) <= group.num_blocks for group in groups)

    @rule(count=st.integers(1, 8))
    def steps(self, count):
        for _ in range(count):
            self.step()

    def step(self):
        before = {s.sequence_id: s.num_tokens for s in self.alive}
        plan = self.scheduler.schedule()
        config = self.scheduler.config
        assert len(plan.sequences) <= config.max_sequences
        if config.chunked_prefill:
            assert plan.num_tokens <= config.max_batch_tokens
        assert plan.num_new[: plan.num_decodes] == [1] * plan.num_decodes
        assert bool(plan) == bool(self.alive), "work waits and nothing was planned"
        finished = self.scheduler.commit(plan, self.model.run(plan))
        for sequence in plan.sequences:
            made = sequence.num_tokens - before[sequence.sequence_id]
            assert made in (0, 1)
        self._retire(finished)

    @rule(data=st.data(), max_tokens=st.integers(1, 12), back=st.sampled_from([0, 0, 1, 5, 20]))
    def fork(self, data, max_tokens, back):
        """Go on from a sequence's tokens, or from the first of them: a window may be past those."""
        if not self.alive:
            return
        parent = data.draw(st.sampled_from(self.alive))
        tokens = parent.token_ids[: max(1, parent.num_tokens - back)]
        if not self.fits(len(tokens) + max_tokens - 1):
            return
        child = make_sequence(self.count, tokens, max_tokens, namespace=parent.request.namespace)
        self.count += 1
        self.scheduler.fork(parent, child)
        self.alive.append(child)

    @rule(failures=st.integers(1, 2))
    def failed_step(self, failures):
        """A forward pass that fails: planned, perhaps half run, never committed."""
        for number in range(failures):
            plan = self.scheduler.schedule()
            if number:
                self.model.run(plan)

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
        for _ in range(2000):
            if not self.alive:
                break
            self.step()
        assert not self.alive, "a sequence never ended"
        assert self.cache.blocks.num_free == self.cache.num_blocks

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
        queued = {s.sequence_id for s in [*self.scheduler.waiting, *self.scheduler.running]}
        assert queued == {s.sequence_id for s in self.alive}
        running = {s.sequence_id: s for s in self.scheduler.running}
        for group in self.cache.blocks.groups:
            assert group.tables.keys() == running.keys(), "a table without a running sequence"
            for sequence_id, table in group.tables.items():
                length = running[sequence_id].num_tokens
                most = group.peak(length, self.scheduler.config.max_new_tokens(length))
                assert len(table.block_ids) <= most, "more than a sequence ever needs"

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
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
