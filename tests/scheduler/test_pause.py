"""A paused sequence runs no more until it is resumed, and costs others nothing but its blocks."""

from __future__ import annotations

import pytest
from shadow import make_sequence

from workbench.events import Preempted, SequencePaused, SequenceResumed
from workbench.request import Status

PROMPT = [0, 1, 2, 1, 0, 2]


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_pause_and_resume(make, step, drain, release: bool, preemption: str) -> None:
    scheduler, model = make(host_blocks=8, preemption=preemption)
    events: list = []
    scheduler.bus.subscribe(events.append)
    one, two = make_sequence(0, PROMPT, 9), make_sequence(1, PROMPT[::-1], 9)
    for sequence in (one, two):
        scheduler.add(sequence)
    step(scheduler, model)
    scheduler.pause(one, release=release)
    scheduler.pause(one, release=release)
    made = one.num_tokens
    for _ in range(3):
        assert [s.sequence_id for s in step(scheduler, model).sequences] == [1]
    assert one.num_tokens == made
    assert scheduler.paused == [one]
    assert (0 in scheduler.blocks.tables) == (not release)
    scheduler.resume(one)
    scheduler.resume(one)
    assert (one.status is Status.RUNNING) == (not release)
    drain(scheduler, model)
    assert one.num_output_tokens == 9
    told = [type(event) for event in events if isinstance(event, SequencePaused | SequenceResumed)]
    assert told == [SequencePaused, SequenceResumed]
    kinds = [event.kind for event in events if isinstance(event, Preempted)]
    assert kinds == ([preemption] if release else [])


def test_a_paused_waiting_one_is_not_admitted(make, step, drain) -> None:
    scheduler, model = make()
    one = make_sequence(0, PROMPT, 3)
    scheduler.add(one)
    scheduler.pause(one)
    assert scheduler.num_unfinished == 0
    assert not step(scheduler, model)
    scheduler.resume(one)
    drain(scheduler, model)
    assert one.finished


def test_blocks_are_taken_from_the_paused_before_the_running(make, step, drain) -> None:
    scheduler, model = make(num_blocks=6)
    one, two = make_sequence(0, PROMPT, 9), make_sequence(1, PROMPT[::-1], 17)
    for sequence in (one, two):
        scheduler.add(sequence)
    step(scheduler, model)
    scheduler.pause(one)
    while not two.finished:
        step(scheduler, model)
    assert two.metrics.num_preemptions == 0
    assert one.metrics.num_preemptions == 1
    assert one.status is Status.PAUSED
    scheduler.resume(one)
    drain(scheduler, model)


def test_resumed_without_a_place_it_waits_with_its_blocks(make, step, drain) -> None:
    scheduler, model = make(max_sequences=1)
    one, two = make_sequence(0, PROMPT, 5), make_sequence(1, PROMPT[::-1], 5)
    scheduler.add(one)
    step(scheduler, model)
    scheduler.pause(one)
    scheduler.add(two)
    step(scheduler, model)
    scheduler.resume(one)
    assert one.status is Status.WAITING
    assert scheduler.holding == [one]
    computed = 0
    while scheduler.num_unfinished:
        computed += step(scheduler, model).num_tokens
    assert computed == 2 * 4, "nothing was computed again"
    drain(scheduler, model)


@pytest.mark.parametrize("release", [False, True])
def test_ending_a_paused_one(make, step, drain, release: bool) -> None:
    scheduler, model = make(host_blocks=8, preemption="swap")
    one = make_sequence(0, PROMPT, 5)
    scheduler.add(one)
    step(scheduler, model)
    scheduler.pause(one, release=release)
    scheduler.finish(one, "abort")
    assert scheduler.paused == scheduler.holding == []
    drain(scheduler, model)


def test_a_step_that_ran_for_a_sequence_paused_meanwhile(make, step, drain) -> None:
    """It counts as not having run: its token is drawn again, and is the same."""
    scheduler, model = make()
    one, two = make_sequence(0, PROMPT, 5), make_sequence(1, PROMPT[::-1], 5)
    for sequence in (one, two):
        scheduler.add(sequence)
    plan = scheduler.schedule()
    sampled = model.run(plan)
    scheduler.pause(one)
    scheduler.commit(plan, sampled)
    assert (one.num_output_tokens, two.num_output_tokens) == (0, 1)
    scheduler.resume(one)
    drain(scheduler, model)
