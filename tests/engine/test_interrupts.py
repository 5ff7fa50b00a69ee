"""Ctrl-C at any moment: the next step works, no block leaks, the tokens are the same in the end."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from tiny import random_prompts

import workbench
from workbench.engine import Engine
from workbench.events import StepDone
from workbench.interrupts import shielded
from workbench.trace import Trace

OWN = tuple(
    str(Path(workbench.__file__).parent / name)
    for name in ("engine", "scheduler", "cache", "interrupts.py")
)
PROMPTS = random_prompts(8, seed=130, longest=24)
PARAMS = [greedy(30) if i % 2 else drawn(i, 30) for i in range(8)]


# pytest-timeout's own way would be the very alarm that is used here.
pytestmark = pytest.mark.timeout(300, method="thread")


class Alarm:
    """Sends real SIGINTs: `with alarm.within(seconds)` one, unless the block ends before."""

    def __init__(self) -> None:
        self.armed = False

    def ring(self, signum: int, frame: object) -> None:
        if self.armed:
            signal.raise_signal(signal.SIGINT)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    """An alarm that is off again when the test ends."""
    alarm = Alarm()
    previous = signal.signal(signal.SIGALRM, alarm.ring)
    yield alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def tight(make_engine: MakeEngine) -> Engine:
    return make_engine(num_blocks=24, block_size=4, max_batch_tokens=16, max_sequences=6)


def step_length(engine: Engine) -> float:
    """Return how long a step takes where nothing holds it up, in seconds."""
    engine.generate(PROMPTS[:2], greedy(3))
    lengths = []
    for _ in range(5):
        begin = time.perf_counter()
        engine.generate(PROMPTS, greedy(6))
        lengths.append((time.perf_counter() - begin) / 20)
    return min(lengths)


@pytest.mark.parametrize("watched", [False, True])
def test_interrupts_at_random_moments(
    alarm: Alarm, make_engine: MakeEngine, alone: Alone, watched: bool
) -> None:
    expected = alone(PROMPTS, PARAMS)
    engine = tight(make_engine)
    longest = 2 * step_length(engine)
    source = random.Random(17)
    interrupts = rounds = 0
    with Trace.record(engine) as trace:
        if not watched:
            engine.bus.unsubscribe(trace)
        while interrupts < 150 and rounds < 200:
            rounds += 1
            names = [engine.add(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
            while engine.has_work:
                try:
                    with alarm.within(1e-5 + source.random() * longest):
                        engine.step()
                except KeyboardInterrupt:
                    interrupts += 1
                    engine.cache.check()
                    queued = {s.sequence_id for s in engine.scheduler.waiting}
                    running = {s.sequence_id for s in engine.scheduler.running}
                    assert set(engine.cache.blocks.tables) == running
                    assert not queued & running
            got = [engine.forget(name).outputs[0].token_ids for name in names]
            assert got == expected
            assert engine.cache.blocks.num_used == 0
    assert interrupts >= 150
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_every_committed_token_is_told(alarm: Alarm, make_engine: MakeEngine) -> None:
    """An interrupt must not come between a step's commit and its event."""
    engine = tight(make_engine)
    longest = 3 * step_length(engine)
    source = random.Random(18)
    with Trace.record(engine) as trace:
        names = [engine.add(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
        while engine.has_work:
            try:
                with alarm.within(1e-5 + source.random() * longest):
                    engine.step()
            except KeyboardInterrupt:
                pass
    told: dict[int, list[int]] = {}
    for event in trace.of(StepDone):
        for sequence_id, token in event.tokens:
            told.setdefault(sequence_id, []).append(token)
    made = [s for name in names for s in engine.requests[name].sequences]
    assert told == {s.sequence_id: s.output_token_ids for s in made}


def test_interrupting_generate_discards_its_batch(
    alarm: Alarm, make_engine: MakeEngine, alone: Alone
) -> None:
    expected = alone(PROMPTS, PARAMS)
    engine = tight(make_engine)
    whole = 20 * step_length(engine)
    source = random.Random(19)
    interrupts = 0
    for i in range(80):
        # Half of them while requests are being added, and just before the return.
        begin, longest = (1e-5, whole / 60) if i % 2 else (1e-5, whole)
        try:
            with alarm.within(begin + source.random() * longest):
                engine.generate(PROMPTS, greedy(4))
        except KeyboardInterrupt:
            interrupts += 1
        assert engine.requests == {}
        assert not engine.has_work
        assert engine.cache.blocks.num_used == 0
        engine.cache.check()
    assert interrupts > 30
    outputs = engine.generate(PROMPTS, PARAMS)
    assert [output.outputs[0].token_ids for output in outputs] == expected


def test_interrupting_add_abort_and_close(alarm: Alarm, make_engine: MakeEngine) -> None:
    """At any moment a request is known and queued, or neither; ended and released, or neither."""
    engine = make_engine()
    source = random.Random(20)
    interrupts = 0
    for _ in range(300):
        try:
            with alarm.within(1e-5 + source.random() * 2e-4):
                for _ in range(20):
                    engine.add([1, 2, 3], greedy(4))
                    engine.abort(engine.add([3, 4], greedy(4)))
        except KeyboardInterrupt:
            interrupts += 1
        waiting = {s.request.request_id for s in engine.scheduler.waiting}
        known = {n for n, record in engine.requests.items() if not record.finished}
        assert known == waiting
        for name in list(engine.requests):
            if name in waiting:
                engine.abort(name)
            engine.forget(name)
    assert interrupts > 100


def test_a_second_thread_is_not_shielded_and_not_stopped(
    make_engine: MakeEngine, alone: Alone
) -> None:
    expected = alone(PROMPTS, PARAMS)
    engine = tight(make_engine)
    before = signal.getsignal(signal.SIGINT)
    handlers, got, enough = [], [], threading.Event()

    def work() -> None:
        with shielded():
            handlers.append(signal.getsignal(signal.SIGINT))
        while not (got and enough.is_set()):
            outputs = engine.generate(PROMPTS, PARAMS)
            got.append([output.outputs[0].token_ids for output in outputs])

    thread = threading.Thread(target=work)
    thread.start()
    interrupts = 0
    while thread.is_alive():
        try:
            signal.raise_signal(signal.SIGINT)
            thread.join(0.001)
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts > 3:
                enough.set()
            time.sleep(0.002)
    assert handlers == [before]
    assert all(tokens == expected for tokens in got)


def test_the_shield_holds_back_and_lets_go() -> None:
    reached = []

    def interrupted() -> None:
        with shielded():
            with shielded():
                signal.raise_signal(signal.SIGINT)
                reached.append("inner")
            reached.append("outer")
        reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_shield_keeps_a_handler_of_the_users() -> None:
    calls = []
    previous = signal.signal(signal.SIGINT, lambda *_: calls.append("mine"))
    try:
        with shielded():
            signal.raise_signal(signal.SIGINT)
            assert calls == []
        assert calls == ["mine"]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with shielded():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


class LineByLine:
    """Sends a SIGINT before the `at`-th line that the engine's own modules run."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, arg: object) -> LineByLine | None:
        if not frame.f_code.co_filename.startswith(OWN):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self

    @contextmanager
    def active(self) -> Iterator[None]:
        previous = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(previous)


def lines_of(work: Callable[[], object]) -> int:
    """Return how many lines of the engine's own modules some work runs."""
    counter = LineByLine(10**9)
    with counter.active():
        work()
    return 10**9 - counter.left


def test_generate_interrupted_at_every_line(make_engine: MakeEngine) -> None:
    """From adding the first request to forgetting the last: nothing of the batch is left."""
    engine = make_engine(num_blocks=6, block_size=2, max_sequences=2)
    prompts = [[5, 6, 7], [8, 9]]
    expected = tokens_of(engine, prompts, greedy(3))
    expected_lines = lines_of(lambda: engine.generate(prompts, greedy(3)))
    assert expected_lines > 400
    interrupts = 0
    for line in range(1, expected_lines, 3):
        try:
            with LineByLine(line).active():
                engine.generate(prompts, greedy(3))
        except KeyboardInterrupt:
            interrupts += 1
        assert engine.requests == {}, line
        assert not engine.has_work, line
        assert engine.cache.blocks.num_used == 0, line
        assert engine.scheduler.books.busy is None, line
        engine.cache.check()
    assert interrupts > 130
    assert tokens_of(engine, prompts, greedy(3)) == expected
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "settings", [{}, {"preemption": "swap", "host_blocks": 20}, {"host_blocks": 6}], ids=str
)
def test_steps_interrupted_at_every_line(
    make_engine: MakeEngine, settings: dict[str, object]
) -> None:
    """Each line once, in one long run with preemption: the tokens are those of a quiet run."""
    engine = make_engine(num_blocks=8, block_size=2, max_sequences=3, **settings)
    prompts = [[5, 6, 7], [8, 9], [4, 3, 2, 1]]
    expected = tokens_of(engine, prompts, greedy(9))
    names = [engine.add(prompt, greedy(9)) for prompt in prompts]
    line = interrupts = 0
    while engine.has_work:
        line += 1
        try:
            with LineByLine(line).active():
                engine.step()
            line = 0  # this step came through: begin the next one anew
        except KeyboardInterrupt:
            interrupts += 1
        engine.cache.check()
        assert engine.scheduler.books.busy is None
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected
    assert sum(s.metrics.num_preemptions for s in engine.requests.values()) > 0
    assert interrupts > 250


def test_a_processor_that_takes_for_ever_can_be_interrupted(make_engine: MakeEngine) -> None:
    """Sampling is shielded, users' functions in it are not; it stays whole at every line."""
    engine = make_engine()
    endless = True

    def stubborn(token_ids: list[int], logits: Any) -> Any:
        while endless:
            signal.raise_signal(signal.SIGINT)
        return logits

    params = greedy(6, logits_processors=[stubborn])
    name = engine.add([1, 2, 3], params)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        assert engine.scheduler.books.busy is None
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    endless = False
    line = interrupts = 0
    while engine.has_work:
        line += 1
        try:
            with LineByLine(line).active():
                engine.step()
            line = 0
        except KeyboardInterrupt:
            interrupts += 1
        assert engine.scheduler.books.busy is None
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert interrupts > 150
    [expected] = tokens_of(make_engine(), [[1, 2, 3]], greedy(6))
    assert engine.output(name).outputs[0].token_ids == expected
