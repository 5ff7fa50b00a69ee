"""A random walk over all that may be done to a scheduler; everything is checked after each."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shadow import ShadowModel, TransferFailed, make_sequence, watch_passed
from snapshots import Follower

from workbench.batch import SampledTokens
from workbench.cache import KVCache, room
from workbench.cache.dropping import KeptBlocks, SinkWindow, keep_all
from workbench.config import SchedulerConfig
from workbench.engine.record import new_tokens, step_done
from workbench.events import Event, Preempted
from workbench.request import Sequence, Status
from workbench.retention import Retention, resolve
from workbench.scheduler import POLICIES, Scheduler, added

# Most begin alike, so that prefixes are met again, and end within a block.
SHARED = [i * i % 7 % 3 for i in range(40)]
TAILS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
PROMPTS = st.builds(lambda common, tail: SHARED[:common] + tail, st.integers(0, 32), TAILS)
WINDOWS = [(None,), (None,), (None,), (3,), (7,), (None, 1), (None, 5, 9), (2, 4)]
SECONDS = [None, 1e-6, 1e6]
PICK = st.integers(0, 30)


def ranges_of(cut: int, low: int, high: int, seconds: float | None) -> list[Retention]:
    """Return what retains a prompt's tokens and what follows in three ways."""
    return [
        Retention(0, cut, priority=low, seconds=seconds),
        Retention(cut, priority=high),
        Retention(priority=low, part="decode"),
    ]


PRIORITY = st.integers(0, 100)
RETENTION = st.one_of(
    st.just([]),
    st.builds(ranges_of, st.integers(1, 24), PRIORITY, PRIORITY, st.sampled_from(SECONDS)),
)


def some(kept: KeptBlocks) -> list[int]:
    """A dropping policy that drops whatever it hits on, and all of it now and then."""
    source = random.Random(f"{kept.request_id} {kept.num_tokens}")
    share = source.choice([0.0, 0.0, 0.2, 1.0])
    return [block.index for block in kept.blocks if source.random() < share]


# The scheduler asks each of these of sequences that run; `keep_all` more often than not.
DROPPINGS = [keep_all, keep_all, some, some, SinkWindow(2, 5)]


def among(sequences: list[Sequence], pick: int) -> Sequence:
    """Return one of them."""
    return sequences[pick % len(sequences)]


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler over a small cache, so that preemption and eviction are common."""

    @initialize(
        tokens=st.integers(12, 72),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_sequences=st.integers(1, 6),
        budget=st.integers(6, 40),
        chunked=st.booleans(),
        reuse=st.sampled_from([True, True, False]),
        partial=st.sampled_from([True, True, False]),
        prefix_wait=st.sampled_from([True, True, False]),
        windows=st.sampled_from(WINDOWS),
        beside=st.integers(0, 6),
        host_blocks=st.sampled_from([0, 1, 5, 40]),
        capacity=st.sampled_from(["max_utilization", "guaranteed_no_evict"]),
        swap=st.booleans(),
        chunking=st.sampled_from(["first_come", "equal_progress"]),
        max_prefill=st.sampled_from([None, 3]),
        dropping=st.sampled_from(DROPPINGS),
    )
    def build(
        self,
        tokens,
        block_size,
        max_sequences,
        budget,
        chunked,
        reuse,
        partial,
        prefix_wait,
        windows,
        beside,
        host_blocks,
        capacity,
        swap,
        chunking,
        max_prefill,
        dropping,
    ):
        if windows != (None,):
            host_blocks = 0
        num_blocks = -(-tokens // block_size)
        self.cache = KVCache(
            num_layers=len(windows),
            num_kv_heads=1,
            head_dim=1,
            num_blocks=num_blocks,
            block_size=block_size,
            windows=windows,
            window_blocks=max(1, num_blocks - beside),
            num_host_blocks=host_blocks,
        )
        config = SchedulerConfig(
            max_batch_tokens=budget,
            max_sequences=max_sequences,
            chunked_prefill=chunked,
            prefix_reuse=reuse,
            partial_reuse=partial,
            prefix_wait=prefix_wait,
            capacity=capacity,
            preemption="swap" if swap and host_blocks else "recompute",
            chunking=chunking,
            max_prefill_tokens=max_prefill,
            dropping=dropping if windows == (None,) else keep_all,
        )
        self.scheduler = Scheduler(self.cache, config)
        self.passed = watch_passed(self.scheduler)
        self.cache.blocks.bus = self.bus = self.scheduler.bus
        self.follower = Follower(self.cache)
        self.bus.subscribe(self.follower)
        self.model = ShadowModel(self.cache.blocks)
        self.alive: list[Sequence] = []
        self.done: list[Sequence] = []
        self.count = 0

    @rule(
        prompts=st.lists(PROMPTS, min_size=1, max_size=4),
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
        self.bus.emit(added(self.scheduler.step, sequence))
        self.alive.append(sequence)

    def fits(self, num_tokens):
        """Whether a sequence that is alone fits each KV group, whatever it has come to hold."""
        return all(self.peak(group, num_tokens) <= group.num_blocks for group in self.groups)

    def peak(self, group, num_tokens):
        """Return the most blocks that a sequence holds in a group."""
        return room.peak(group, num_tokens, self.scheduler.config.max_new_tokens(num_tokens))

    @property
    def groups(self):
        return self.cache.blocks.groups

    @rule(count=st.integers(1, 8))
    def steps(self, count):
        for _ in range(count):
            self.step()
            self.whole()

    def step(self):
        before = {s.sequence_id: s.num_tokens for s in self.alive}
        plan = self.plan()
        self.model.transfers_left = 10**9
        sampled = self.model.run(plan) if plan else SampledTokens([])
        new = new_tokens([plan.sequences[row] for row in plan.sampled], sampled)
        finished = self.scheduler.commit(plan, sampled)
        self.bus.emit(step_done(plan, new, sampled, {}, self.cache.blocks.num_free))
        for sequence in plan.sequences:
            made = sequence.num_tokens - before[sequence.sequence_id]
            assert made in (0, 1)
        self._retire(finished)

    @rule(pick=PICK, max_tokens=st.integers(1, 30), back=st.sampled_from([0, 0, 1, 5, 20]))
    def fork(self, pick, max_tokens, back):
        """Go on from a sequence's tokens, or from the first of them: a window may be past those."""
        if not self.alive:
            return
        parent = among(self.scheduler.running or self.alive, pick)
        tokens = parent.token_ids[: max(1, parent.num_tokens - back)]
        if not self.fits(len(tokens) + max_tokens - 1):
            return
        child = make_sequence(self.count, tokens, max_tokens, namespace=parent.request.namespace)
        child.metrics = replace(parent.metrics, num_preemptions=0)  # as the engine does
        self.count += 1
        self.scheduler.fork(parent, child)
        self.alive.append(child)

    def plan(self):
        """Plan a step and check what holds of every plan."""
        running = {s.sequence_id for s in self.scheduler.running}
        self.passed.clear()
        plan = self.scheduler.schedule()
        for follower, leader in self.passed:
            assert follower.status is Status.WAITING
            assert leader in plan.sequences or leader in plan.preempted, "it waits for nothing"
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

    @rule(pick=PICK, release=st.booleans())
    def pause(self, pick, release):
        if self.alive:
            sequence = among(self.alive, pick)
            self.scheduler.pause(sequence, release=release)
            assert sequence.status is Status.PAUSED
            assert not release or sequence.sequence_id not in self.cache.blocks.tables

    @rule(pick=PICK)
    def resume(self, pick):
        if self.alive:
            sequence = among(self.alive, pick)
            self.scheduler.resume(sequence)
            assert sequence.status is not Status.PAUSED

    @rule()
    def clear_cached(self):
        self.cache.blocks.clear_cached()

    @rule(pick=PICK)
    def abort(self, pick):
        if self.alive:
            sequence = among(self.alive, pick)
            self.scheduler.finish(sequence, "abort")
            self._retire([sequence])

    @rule(name=st.sampled_from(sorted(POLICIES)))
    def swap_policy(self, name):
        self.scheduler.policy = POLICIES[name]

    @rule(dropping=st.sampled_from(DROPPINGS))
    def swap_dropping(self, dropping):
        if len(self.groups) == 1 and self.groups[0].window is None:
            self.scheduler.dropping = dropping

    @precondition(lambda self: self.count > 12)
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
        scheduler = self.scheduler
        self.follower.compare(self.cache, scheduler)
        waiting, running, paused = (
            {s.sequence_id for s in queue}
            for queue in (scheduler.waiting, scheduler.running, scheduler.paused)
        )
        assert sorted([*waiting, *running, *paused]) == sorted(s.sequence_id for s in self.alive)
        assert set(scheduler._queues._names) <= waiting
        assert set(scheduler._queues.prefix_waits._awaited) <= waiting
        holders = {s.sequence_id: s for s in [*scheduler.holding, *scheduler.running]}
        holding = holders.keys() - running
        assert holding <= waiting | paused
        for group in self.groups:
            assert group.tables.keys() == holders.keys(), "a table of nobody that may go on"
            for sequence_id, table in group.tables.items():
                most = self.peak(group, holders[sequence_id].num_tokens)
                assert len(table.block_ids) <= most, "more than a sequence ever needs"
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
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Met(Counter[str]):
    """Counts what happened, by event; preemptions also by kind."""

    def __call__(self, event: Event) -> None:
        self[type(event).__name__] += 1
        if isinstance(event, Preempted):
            self[event.kind] += 1
            self["host full"] += "host tier is full" in event.cause
            self["not swapped"] += "were dropped" in event.cause
            self["reclaimed"] += "nothing else can run" in event.cause


def walk(source: random.Random, met: Met, **fixed: Any) -> None:
    """Drive a machine at random, without hypothesis: more happens, and nothing is shrunk.

    fixed: settings of the machine that are not drawn.
    """
    machine = SchedulerMachine()
    drawn = {
        "tokens": source.randint(12, 72),
        "block_size": source.choice([1, 2, 4, 8]),
        "max_sequences": source.randint(1, 6),
        "budget": source.randint(6, 40),
        "chunked": source.random() < 0.7,
        "reuse": source.random() < 0.7,
        "partial": source.random() < 0.7,
        "prefix_wait": source.random() < 0.7,
        "windows": source.choice(WINDOWS),
        "beside": source.randint(0, 6),
        "host_blocks": source.choice([0, 3, 10, 40]),
        "capacity": source.choice(["max_utilization", "max_utilization", "guaranteed_no_evict"]),
        "swap": source.random() < 0.7,
        "chunking": source.choice(["first_come", "equal_progress"]),
        "max_prefill": source.choice([None, 3]),
        "dropping": source.choice(DROPPINGS),
    }
    machine.build(**{**drawn, **fixed})
    machine.bus.subscribe(met)
    pick = partial(source.randint, 0, 30)
    actions = {
        lambda: machine.add(
            [prompt(source) for _ in range(source.choice([1, 1, 1, 4]))],
            source.randint(1, 30),
            "",
            source.randint(0, 2),
            retention(source),
        ): 4,
        lambda: machine.steps(source.randint(1, 4)): 6,
        lambda: machine.fork(pick(), source.randint(1, 30), source.choice([0, 0, 1, 5, 20])): 3,
        lambda: machine.failed_step(source.randint(1, 2), source.randint(0, 12)): 2,
        lambda: machine.pause(pick(), source.random() < 0.3): 2,
        lambda: machine.resume(pick()): 1,
        lambda: machine.abort(pick()): 1,
        lambda: machine.swap_policy(source.choice(sorted(POLICIES))): 1,
        lambda: machine.swap_dropping(source.choice(DROPPINGS)): 0.5,
        lambda: machine.clear_cached(): 0.2,
    }
    for action in source.choices(list(actions), list(actions.values()), k=60):
        action()
        machine.whole()
    machine.drain()
    machine.whole()
    machine.tokens_are_those_of_a_run_alone()


def prompt(source: random.Random) -> list[int]:
    """Return a prompt that likely begins like others."""
    return [*SHARED[: source.randint(0, 20)], *(source.randint(0, 2) for _ in range(2))]


def retention(source: random.Random) -> list[Retention]:
    """Return how a prompt is retained: half of them as it comes."""
    if source.random() < 0.5:
        return []
    low, high = source.randint(0, 100), source.randint(0, 100)
    return ranges_of(source.randint(1, 24), low, high, source.choice(SECONDS))


def test_nobody_is_evicted_under_windows() -> None:
    """Tight windows: a sequence that goes on gives back only the blocks that it has alone."""
    met, source = Met(), random.Random(5)
    for _ in range(200):
        walk(
            source,
            met,
            tokens=source.randint(14, 26),
            block_size=source.choice([1, 2]),
            max_sequences=6,
            budget=6,
            chunked=True,
            reuse=True,
            windows=source.choice([(3,), (7,), (2, 4)]),
            beside=0,
            host_blocks=0,
            capacity="guaranteed_no_evict",
        )
    assert met["BlockCopied"] >= 100, met
    assert met["BlockShared"] >= 500, met


def test_walks_in_which_everything_happens() -> None:
    met, source = Met(), random.Random(3)
    for _ in range(150):
        walk(source, met)
    for name in ("swap", "recompute", "host full", "reclaimed", "SwappedIn", "BlockCopied"):
        assert met[name] >= 5, (name, met)
    assert met["BlockRestored"] > met["SwappedIn"], "also evicted blocks come back"
    assert met["PrefixAwaited"] >= 200, met
    assert met["BlocksDropped"] >= 500, met
    assert met["not swapped"] >= 5, "what has dropped blocks is not swapped out"
