"""`trace.at(step)` is the engine as it was after that step, whatever was done to it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drive import MakeEngine, drawn, greedy
from snapshots import Follower, difference, of_live, of_replayed
from tiny import VOCAB

from workbench import events
from workbench.engine import Engine
from workbench.errors import ConfigError, RequestError, TraceError
from workbench.events import StepDone
from workbench.guided_params import GuidedDecodingParams
from workbench.sampling_params import SamplingParams
from workbench.scheduler import POLICIES
from workbench.trace import BlockDiff, Trace, live_state

SHARED = [7 + 11 * i % (VOCAB - 8) for i in range(40)]


class Walk:
    """Drives an engine at random and notes its state after each step, by step."""

    def __init__(self, engine: Engine, source: random.Random, *, guided: bool) -> None:
        self.engine, self.source, self.guided = engine, source, guided
        self.follower = Follower(engine.cache)
        self.states: list[Any] = []
        self.live: dict[int, Any] = {}
        engine.bus.subscribe(self.follower)
        engine.bus.subscribe(self.note)

    def note(self, event: events.Event) -> None:
        if isinstance(event, StepDone):
            self.live[event.step] = self.now()

    def now(self) -> dict[str, Any]:
        records = self.engine.requests.values()
        unfinished = [s for record in records for s in record.sequences if not s.finished]
        return of_live(self.engine.cache, self.engine.scheduler, unfinished)

    def compare(self) -> None:
        records = self.engine.requests.values()
        unfinished = [s for record in records for s in record.sequences if not s.finished]
        self.follower.compare(self.engine.cache, self.engine.scheduler, unfinished)

    def add(self) -> None:
        source = self.source
        count = source.randint(1, 12)
        prompt = [*SHARED[: source.randint(0, 30)], source.randint(1, VOCAB - 1)]
        kinds: list[SamplingParams] = [
            greedy(count),
            drawn(1, count, n=3, logprobs=1),
            drawn(2, count, n=2, best_of=3),
            SamplingParams(beam_width=3, n=3, max_tokens=count),
            greedy(count, prompt_logprobs=1),
        ]
        if self.guided:
            guide = GuidedDecodingParams(regex="[ab]{1,8}")
            kinds.append(greedy(count, guided_decoding=guide, ignore_eos=False))
        wishes = {"priority": source.randint(0, 2), "namespace": source.choice(["", "", "other"])}
        with suppress(RequestError):  # more beams than there is room for
            self.engine.add(prompt, source.choice(kinds), **wishes)

    def one(self, of: Callable[[Any], bool] = lambda record: True) -> str | None:
        names = [n for n, r in self.engine.requests.items() if not r.finished and of(r)]
        return self.source.choice(names) if names else None

    def fork(self) -> None:
        name = self.one(lambda record: record.strategy is None)
        if name is not None:
            branch = greedy(self.source.randint(1, 60))
            with_room = self.engine.find(name).sequences[0].num_output_tokens < branch.max_tokens
            if with_room:
                with suppress(RequestError):  # guided, or what it reports was not kept
                    self.engine.fork(name, branch)

    def abort(self) -> None:
        if (name := self.one()) is not None:
            self.engine.abort(name)

    def pause(self) -> None:
        if (name := self.one()) is not None:
            self.engine.pause(name, release=self.source.random() < 0.4)

    def resume(self) -> None:
        paused = sorted({s.request.request_id for s in self.engine.scheduler.paused})
        for name in paused[: self.source.randint(0, len(paused))]:
            self.engine.resume(name)

    def checkpoint(self) -> None:
        self.states.append(self.engine.checkpoint())

    def restore(self) -> None:
        if self.states:
            self.engine.restore(self.source.choice(self.states))

    def fail(self) -> None:
        """A forward pass that fails, perhaps after its transfers were made."""
        runner, run, after = self.engine.runner, self.engine.runner.run, self.source.random() < 0.5

        def failing(plan: Any) -> Any:
            if after:
                run(plan)
            raise ZeroDivisionError

        runner.run = failing  # type: ignore[method-assign]
        try:
            self.engine.step()
        except ZeroDivisionError:
            pass
        finally:
            runner.run = run  # type: ignore[method-assign]

    def swap(self) -> None:
        self.engine.swap(scheduler_policy=self.source.choice(sorted(POLICIES)))

    def go(self, count: int) -> None:
        actions: dict[Callable[[], Any], float] = {
            self.add: 5,
            partial(self.engine.run, 1): 8,
            self.fork: 2,
            self.abort: 1,
            self.pause: 1,
            self.resume: 1,
            self.checkpoint: 0.6,
            self.restore: 0.4,
            self.fail: 0.7,
            self.swap: 0.3,
            self.engine.cache.blocks.clear_cached: 0.3,
        }
        for action in self.source.choices(list(actions), list(actions.values()), k=count):
            action()
            self.compare()
        for sequence in self.engine.scheduler.paused:
            self.engine.resume(sequence.request.request_id)
        for _ in range(3000):
            if not self.engine.has_work:
                return
            self.engine.step()
            self.compare()
        raise AssertionError(f"a request never ends: {self.engine!r}")


def settings_of(source: random.Random, family: str) -> dict[str, Any]:
    block_size = source.choice([1, 4, 4, 16])
    host = source.choice([0, 32, 320]) // block_size if family == "llama" else 0
    budget = source.randint(6, 40)
    return {
        "block_size": block_size,
        "num_blocks": source.choice([100, 160]) // block_size,
        "max_batch_tokens": budget,
        "max_sequences": source.randint(3, 6),
        "prefix_reuse": source.random() < 0.8,
        "partial_reuse": source.random() < 0.8,
        "host_blocks": host,
        "preemption": "swap" if host and source.random() < 0.7 else "recompute",
        "capacity": source.choice(["max_utilization", "max_utilization", "guaranteed_no_evict"]),
        "chunking": source.choice(["first_come", "equal_progress"]),
    }


def check(trace: Trace, live: dict[int, Any]) -> None:
    """Assert that the trace says of each step what was noted then, in any order of asking."""
    assert trace.steps == sorted(live)
    order = list(trace.steps)
    random.Random(1).shuffle(order)
    for step in order:
        shown = of_replayed(trace.at(step))
        assert shown == live[step], (step, difference(shown, live[step]))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2-windows"])
def test_a_random_run(make_engine: MakeEngine, family: str, tmp_path: Path, request: Any) -> None:
    source = random.Random(request.node.name)
    met: Counter[str] = Counter()
    for _ in range(6):
        engine = make_engine(family, guided=True, seed=3, **settings_of(source, family))
        engine.bus.subscribe(lambda event: met.update([type(event).__name__]))
        with Trace.record(engine) as trace:
            walk = Walk(engine, source, guided=True)
            walk.go(70)
        check(trace, walk.live)
        loaded = Trace.load(trace.save(tmp_path / "run.trace"))
        assert loaded.events == trace.events
        check(loaded, walk.live)
        blocks_follow_from_changes(trace)
        engine.close()
    expected = {"BlockShared", "BlockCopied", "Preempted", "SequenceForked", "SequenceExtended"}
    expected |= {"BlockEvicted", "SequencePaused", "EngineRestored", "SequenceQueued"}
    assert expected <= met.keys(), expected - met.keys()


def blocks_follow_from_changes(trace: Trace) -> None:
    """The changes of each step lead from one step's blocks to the next's, and back."""
    shown = dict.fromkeys(range(trace.layout.num_blocks))
    blank = BlockDiff(trace.layout)._seen
    shown = dict(enumerate(blank))
    seen: list[int] = []
    for state, step in trace.replay():
        for change in step.changes:
            assert shown[change.block_id] == change.before
            assert change.before != change.after
            shown[change.block_id] = change.after
        assert shown == {n: state.block(n) for n in shown}, step.step
        seen += list(step.events)
    assert seen == list(range(len(seen)))


def test_swapping_and_the_host(make_engine: MakeEngine) -> None:
    """What happens to the host tier is told to the last slot."""
    source, met = random.Random(8), Counter[str]()
    for _ in range(6):
        chosen = {**settings_of(source, "llama"), "block_size": 4, "num_blocks": 25}
        engine = make_engine(**{**chosen, "host_blocks": 12, "preemption": "swap"})
        engine.bus.subscribe(lambda event: met.update([type(event).__name__]))
        Walk(engine, source, guided=False).go(80)
        engine.close()
    for name in ("SwappedOut", "SwappedIn", "BlockOffloaded", "BlockRestored", "BlocksMoved"):
        assert met[name] >= 5, (name, met)
    assert met["HostCleared"]


def test_a_recording_of_a_running_engine(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(num_blocks=24, block_size=4, preemption="swap", host_blocks=12)
    walk = Walk(engine, random.Random(4), guided=False)
    num_steps = 0
    for count in (8, 10, 6):
        for _ in range(count):
            walk.add()
        engine.run(5)
        shown = of_replayed(live_state(engine))
        assert shown == walk.now(), difference(shown, walk.now())
        walk.live.clear()
        with Trace.record(engine) as trace:
            walk.go(30)
        num_steps += len(trace.steps)
        check(trace, walk.live)
        check(Trace.load(trace.save(tmp_path / "t.trace")), walk.live)
    assert num_steps > 50


def test_steps_that_are_not_there(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add(SHARED, greedy(8))
    with Trace.record(engine) as trace:
        engine.run(2)
        Walk(engine, random.Random(0), guided=False).fail()
        failed = engine.scheduler.step
        assert failed not in trace.steps
        engine.run()
    with pytest.raises(TraceError, match=f"step {failed} was planned and never committed"):
        trace.at(failed)
    for step in (0, engine.scheduler.step + 1):
        with pytest.raises(TraceError, match=f"step {step} is not in the trace"):
            trace.at(step)
    with pytest.raises(TraceError, match="says nothing of the cache"):
        Trace().at(1)


def test_a_trace_that_grows(make_engine: MakeEngine) -> None:
    """`at` may be asked while the engine runs; what it returned does not change afterwards."""
    engine = make_engine(num_blocks=24, block_size=4)
    for start in range(4):
        engine.add(SHARED[start : start + 9], greedy(20))
    kept: dict[int, tuple[Any, Any]] = {}
    with Trace.record(engine) as trace:
        while engine.has_work:
            engine.step()
            step = engine.scheduler.step
            state = trace.at(step)
            kept[step] = state, of_replayed(state)
    for step, (state, shown) in kept.items():
        assert of_replayed(state) == shown == of_replayed(trace.at(step))


def test_a_bounded_recording(make_engine: MakeEngine, tmp_path: Path) -> None:
    """Of a long run the latest steps are kept, and rebuilt as exactly as ever."""
    engine = make_engine(num_blocks=24, block_size=4, preemption="swap", host_blocks=12)
    walk = Walk(engine, random.Random(9), guided=False)
    with Trace.record(engine, max_events=300) as trace:
        for _ in range(6):
            for _ in range(4):
                walk.add()
            engine.run()
            assert len(trace) <= 301 + 200, "no more than one step above it"
    kept = {step: state for step, state in walk.live.items() if step >= trace.steps[0]}
    assert len(walk.live) > len(kept) > 3
    assert isinstance(trace.events[0], events.StateSeen)
    check(trace, kept)
    check(Trace.load(trace.save(tmp_path / "t.trace")), kept)
    with pytest.raises(TraceError, match="is not in the trace"):
        trace.at(1)
    with pytest.raises(ConfigError, match="max_events=0"), Trace.record(engine, max_events=0):
        pass
