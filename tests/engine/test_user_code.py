"""Policies and subscribers are user code: what they do wrong is told, and the engine goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from drive import Alone, MakeEngine, greedy
from tiny import random_prompts

from workbench import events
from workbench.engine import Engine
from workbench.errors import WorkbenchError
from workbench.scheduler.policy import fcfs
from workbench.trace import Trace

PROMPTS = random_prompts(6, seed=120, longest=24)


def raising(sequence: Any) -> int:
    raise ValueError("no idea")


def unorderable(sequence: Any) -> Any:
    return [None, "a", 3, {}, object(), 2j][sequence.sequence_id % 6]


def raising_later() -> Callable[[Any], int]:
    calls = iter(range(20))
    return lambda sequence: next(calls)


def tight(make_engine: MakeEngine, **settings: Any) -> Engine:
    """An engine in which policies decide about admission and preemption."""
    return make_engine(num_blocks=16, block_size=4, max_sequences=4, **settings)


@pytest.mark.parametrize(
    "bad", [raising, unorderable, raising_later()], ids=["raises", "no order", "later"]
)
def test_a_bad_policy_is_replaced(make_engine: MakeEngine, alone: Alone, bad: Any) -> None:
    expected = alone(PROMPTS, greedy(20))
    engine = tight(make_engine, policy=bad)
    names = [engine.add(prompt, greedy(20)) for prompt in PROMPTS]
    with (
        Trace.record(engine) as trace,
        pytest.warns(UserWarning, match="raised; using fcfs") as told,
    ):
        engine.run()
    assert len(told) == 1
    failures = trace.of(events.PolicyFailed)
    assert len(failures) == 1
    assert "Traceback" in failures[0].error
    assert engine.scheduler.policy is fcfs
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


def test_a_policy_may_add_requests(make_engine: MakeEngine, alone: Alone) -> None:
    expected = alone(PROMPTS, greedy(8))
    engine = tight(make_engine)
    names = [engine.add(prompt, greedy(8)) for prompt in PROMPTS[:3]]

    def adding(sequence: Any) -> int:
        if len(names) < len(PROMPTS):
            names.append(engine.add(PROMPTS[len(names)], greedy(8)))
        return -sequence.sequence_id

    engine.swap(scheduler_policy=adding)
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


@pytest.mark.parametrize("kind", ["clear", "reverse", "pop", "append"])
def test_a_policy_that_mutates_the_queue_loses_nobody(
    make_engine: MakeEngine, alone: Alone, kind: str
) -> None:
    expected = alone(PROMPTS, greedy(8))
    engine = tight(make_engine)
    names = [engine.add(prompt, greedy(8)) for prompt in PROMPTS]
    harm = {
        "clear": lambda queue, s: queue.clear(),
        "reverse": lambda queue, s: queue.reverse(),
        "pop": lambda queue, s: queue.pop() if queue else None,
        "append": lambda queue, s: queue.append(s),
    }[kind]

    def harmful(sequence: Any) -> int:
        harm(engine.scheduler.waiting, sequence)
        return sequence.sequence_id

    engine.swap(scheduler_policy=harmful)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


@pytest.mark.parametrize("kind", ["RequestAdded", "BlockAllocated", "SequenceAdmitted", "StepDone"])
@pytest.mark.parametrize("action", ["default", "error"])
def test_a_subscriber_that_raises_is_detached(
    make_engine: MakeEngine,
    alone: Alone,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    action: Any,
) -> None:
    """Even where the user has turned warnings into errors: the engine's books stay whole."""
    expected = alone(PROMPTS, greedy(20))
    engine = tight(make_engine)
    calls = []

    def bad(event: events.Event) -> None:
        if type(event).__name__ == kind:
            calls.append(event)
            raise ValueError("no idea")

    seen: list[events.Event] = []
    engine.bus.subscribe(seen.append)
    engine.bus.subscribe(bad)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        names = [engine.add(prompt, greedy(20)) for prompt in PROMPTS]
        engine.run()
    assert len(calls) == 1
    assert len(caught) + capsys.readouterr().err.count("UserWarning: event") == 1, "told once"
    failed = [event for event in seen if isinstance(event, events.SubscriberFailed)]
    assert len(failed) == 1
    assert "no idea" in failed[0].error
    assert "bad" in failed[0].subscriber
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected
    assert len([e for e in seen if type(e).__name__ == "StepDone"]) > 20, "others go on watching"


def test_all_subscribers_may_fail(make_engine: MakeEngine) -> None:
    engine = make_engine()

    def bad(event: events.Event) -> None:
        raise ValueError(type(event).__name__)

    for _ in range(3):
        engine.bus.subscribe(lambda event: bad(event))
    with pytest.warns(UserWarning, match="detached"):
        engine.generate(PROMPTS, greedy(3))
    assert not engine.bus


def test_a_subscriber_may_add_and_unsubscribe(make_engine: MakeEngine, alone: Alone) -> None:
    expected = alone(PROMPTS[:2], greedy(6))
    engine = make_engine()
    names = [engine.add(PROMPTS[0], greedy(6))]

    def follow_up(event: events.Event) -> None:
        if isinstance(event, events.RequestFinished):
            names.append(engine.add(PROMPTS[1], greedy(6)))
            stop()

    stop = engine.bus.subscribe(follow_up)
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected
    assert not engine.bus


@pytest.mark.parametrize(
    "kind",
    ["PrefixMiss", "BlockAllocated", "StepPlanned", "BlockCached", "RequestFinished", "Preempted"],
)
@pytest.mark.parametrize("act", ["abort", "step", "close"])
def test_a_step_is_not_entered_twice(
    make_engine: MakeEngine, alone: Alone, kind: str, act: str
) -> None:
    """Within a step, abort, step and close are refused; the request goes on unharmed."""
    expected = alone(PROMPTS, greedy(20))
    engine = tight(make_engine)
    names = [engine.add(prompt, greedy(20)) for prompt in PROMPTS]
    refused = []

    def meddle(event: events.Event) -> None:
        if type(event).__name__ != kind or refused:
            return
        try:
            {"abort": lambda: engine.abort(names[0]), "step": engine.step, "close": engine.close}[
                act
            ]()
        except WorkbenchError as error:
            refused.append(str(error))

    engine.bus.subscribe(meddle)
    engine.run()
    assert len(refused) == 1
    assert "between two steps" in refused[0]
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected
