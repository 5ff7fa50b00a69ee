"""A random walk over a real engine: whatever happens, each output is that of a quiet run."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import pytest
from drafted_kv import check_companion, perturbed, poison
from drive import drawn, greedy, tokens_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from snapshots import Follower
from tiny import VOCAB

from workbench.engine import Engine
from workbench.errors import RequestError
from workbench.models import DecoderLM
from workbench.sampling_params import SamplingParams
from workbench.scheduler import POLICIES
from workbench.speculation import DraftModel

CAPACITY = 64  # tokens: two long requests fill the cache
# Few different prompts, some the beginning of others, so that prefixes are met again.
SHARED = [7 + 11 * i % (VOCAB - 8) for i in range(40)]
PROMPTS = st.one_of(
    st.integers(1, 40).map(lambda length: SHARED[:length]),
    st.tuples(st.integers(0, 30), st.integers(1, VOCAB - 1)).map(
        lambda pair: [*SHARED[: pair[0]], pair[1]]
    ),
)
PARAMS = st.one_of(
    st.integers(1, 12).map(lambda count: greedy(count)),
    st.builds(lambda seed, count: drawn(seed, count), st.integers(0, 2), st.integers(1, 12)),
    st.integers(1, 12).map(lambda count: greedy(count, stop="e", logprobs=1)),
)


class Fault(Exception):
    """What a failing forward pass raises."""


class EngineMachine(RuleBasedStateMachine):
    """Drives an engine whose cache is small, so that preemption and eviction are common."""

    make: Any
    model: DecoderLM
    known: dict[tuple[str, tuple[tuple[int, ...], SamplingParams]], list[int]]

    @initialize(
        backend=st.sampled_from(["reference", "sdpa", "native"]),
        block_size=st.sampled_from([1, 4, 16]),
        budget=st.integers(4, 40),
        max_sequences=st.integers(1, 4),
        chunked=st.booleans(),
        reuse=st.booleans(),
        host_tokens=st.sampled_from([0, 32, 320]),
        swap=st.booleans(),
        capacity=st.sampled_from(["max_utilization", "guaranteed_no_evict"]),
        chunking=st.sampled_from(["first_come", "equal_progress"]),
        family=st.sampled_from(["llama", "llama", "mistral", "qwen2-windows"]),
    )
    def build(
        self,
        backend,
        block_size,
        budget,
        max_sequences,
        chunked,
        reuse,
        host_tokens,
        swap,
        capacity,
        chunking,
        family,
    ):
        self.family = family
        if family != "llama":  # a window: there is no host tier
            host_tokens = 0
        self.engine: Engine = self.make(
            family,
            backend=backend,
            block_size=block_size,
            num_blocks=CAPACITY // block_size,
            max_batch_tokens=budget if chunked else 64,
            max_sequences=max_sequences,
            chunked_prefill=chunked,
            prefix_reuse=reuse,
            host_blocks=host_tokens // block_size,
            preemption="swap" if swap and host_tokens else "recompute",
            capacity=capacity,
            chunking=chunking,
        )
        self.follower = Follower(self.engine.cache)
        self.engine.bus.subscribe(self.follower)
        self.asked: dict[str, tuple[tuple[int, ...], SamplingParams]] = {}
        self.aborted: set[str] = set()
        self.prepare()

    def prepare(self):
        """Change a new engine."""

    @rule(prompt=PROMPTS, params=PARAMS, priority=st.integers(0, 2))
    def add(self, prompt, params, priority):
        name = self.engine.add(prompt, params, priority=priority)
        self.asked[name] = (tuple(prompt), params)

    @rule(count=st.integers(1, 4))
    def step(self, count):
        self.engine.run(count)

    @rule(error=st.sampled_from([Fault, KeyboardInterrupt]), after=st.booleans())
    def failing_step(self, error, after):
        runner, run = self.engine.runner, self.engine.runner.run

        def fail(plan):
            if after:
                run(plan)
            raise error

        runner.run = fail
        try:
            self.engine.step()
        except error:
            pass
        else:
            assert not self.engine.has_work
        finally:
            runner.run = run

    @rule()
    def interrupted_commit(self):
        """An interrupt that arrives while a step is committed: it counts, and is told later."""
        if not self.engine.has_work:
            return
        publish = self.engine.cache.blocks.finish_copies

        def interrupt():
            signal.raise_signal(signal.SIGINT)
            publish()

        self.engine.cache.blocks.finish_copies = interrupt
        try:
            with pytest.raises(KeyboardInterrupt):
                self.engine.step()
        finally:
            self.engine.cache.blocks.finish_copies = publish

    @rule(data=st.data())
    def abort(self, data):
        running = [n for n, s in self.engine.requests.items() if not s.finished]
        if running:
            name = data.draw(st.sampled_from(running))
            self.engine.abort(name)
            self.aborted.add(name)

    @rule(data=st.data(), release=st.booleans())
    def pause(self, data, release):
        going = [n for n, s in self.engine.requests.items() if not s.finished]
        if going:
            self.engine.pause(data.draw(st.sampled_from(going)), release=release)

    @rule(data=st.data())
    def resume(self, data):
        paused = [s.request.request_id for s in self.engine.scheduler.paused]
        if paused:
            self.engine.resume(data.draw(st.sampled_from(paused)))

    @rule(at=st.integers(0, 6), error=st.sampled_from([Fault, KeyboardInterrupt]))
    def failing_transfer(self, at, error):
        """A copy to or from the host that fails, after some were made."""
        memory = self.engine.cache.host_memory
        if memory is None:
            return
        calls = iter(range(at))
        originals = memory.offload, memory.restore

        def failing(move):
            def act(pairs):
                for key, value in pairs.items():
                    if next(calls, None) is None:
                        raise error
                    move({key: value})

            return act

        memory.offload, memory.restore = map(failing, originals)
        try:
            self.engine.step()
        except error:
            pass
        finally:
            memory.offload, memory.restore = originals

    @rule(
        policy=st.sampled_from(sorted(POLICIES)),
        backend=st.sampled_from(["reference", "sdpa", "native"]),
    )
    def swap(self, policy, backend):
        self.engine.swap(scheduler_policy=policy, backend=backend)

    @rule()
    def clear_cached(self):
        self.engine.cache.blocks.clear_cached()

    @invariant()
    def whole(self):
        if hasattr(self, "engine"):
            self.engine.cache.check()
            scheduler = self.engine.scheduler
            self.follower.compare(self.engine.cache, scheduler)
            owners = {s.sequence_id for s in [*scheduler.running, *scheduler.holding]}
            assert set(self.engine.cache.blocks.tables) == owners

    @invariant()
    def outputs_are_those_of_a_quiet_run(self):
        for name, asked in list(getattr(self, "asked", {}).items()):
            if self.engine.requests[name].finished:
                output = self.engine.forget(name).outputs[0]
                expected = self.quiet(asked)
                if name in self.aborted:
                    expected = expected[: len(output.token_ids)]
                assert output.token_ids == expected, asked
                assert output.logprobs is None or len(output.logprobs) == len(output.token_ids)
                del self.asked[name]

    def quiet(self, asked):
        """Return the tokens of a request in a large engine of its own."""
        key = self.family, asked
        if key not in self.known:
            engine = self.make(self.family, backend="reference", prefix_reuse=False)
            self.known[key] = tokens_of(engine, [list(asked[0])], asked[1])[0]
        return self.known[key]

    def teardown(self):
        if hasattr(self, "engine"):
            for sequence in self.engine.scheduler.paused:
                self.engine.resume(sequence.request.request_id)
            self.engine.run(2000)
            assert not self.engine.has_work, "a request never ended"
            self.outputs_are_those_of_a_quiet_run()
            assert self.engine.cache.blocks.num_used == 0


class DraftingMachine(EngineMachine):
    """The same with a draft model that is right about half of the time, now on and now off, and
    with forks and travels in time."""

    drafter: DecoderLM

    def prepare(self):
        self.saved: Any = None
        self.draft(on=True)

    @rule(on=st.booleans())
    def draft(self, on):
        proposer = self.engine.speculator.proposer
        if on and proposer is None:
            self.engine.swap(proposer=DraftModel(self.drafter, 3, backend="sdpa"))
            poison(self.engine.speculator.proposer.kv)
        elif not on:
            self.engine.swap(proposer="off")

    @rule(data=st.data())
    def fork(self, data):
        going = [n for n, s in self.engine.requests.items() if not s.finished]
        if going:
            name = data.draw(st.sampled_from(going))
            with contextlib.suppress(RequestError):  # nothing of it is computed, say
                self.asked[self.engine.fork(name)] = self.asked[name]

    @rule()
    def checkpoint(self):
        self.saved = self.engine.checkpoint(), dict(self.asked), set(self.aborted)

    @rule()
    def restore(self):
        if self.saved is not None:
            state, asked, aborted = self.saved
            self.engine.restore(state)
            self.asked, self.aborted = dict(asked), set(aborted)

    @invariant()
    def what_is_drafted_with_is_true(self):
        proposer = getattr(self, "engine", None) and self.engine.speculator.proposer
        if proposer is not None and self.engine.cache.blocks.groups[0].window is None:
            proposer.kv.check()
            check_companion(proposer.kv, self.drafter, self.engine.scheduler.running)


def test_engine_machine(make_engine: Any) -> None:
    class Machine(EngineMachine):
        pass

    _run(Machine, make_engine, max_examples=40)


def test_engine_machine_with_a_draft_model(make_engine: Any, model_of: Any) -> None:
    class Machine(DraftingMachine):
        drafter = perturbed(model_of("llama"))

    _run(Machine, make_engine, max_examples=20)


def _run(machine: type[EngineMachine], make_engine: Any, max_examples: int) -> None:
    machine.make, machine.known = staticmethod(make_engine), {}
    chosen = settings(
        max_examples=max_examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(machine, settings=chosen)
