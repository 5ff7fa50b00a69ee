"""Who may start: under `guaranteed_no_evict` nobody that started ever loses its blocks."""

from __future__ import annotations

import pytest
from shadow import make_sequence

from workbench.errors import ConfigError
from workbench.events import Preempted
from workbench.request import Status


def preemptions(scheduler) -> list[Preempted]:
    events: list[Preempted] = []
    scheduler.bus.subscribe(lambda event: events.append(event) if type(event) is Preempted else 0)
    return events


@pytest.mark.parametrize(
    ("capacity", "started", "preempted"),
    [("max_utilization", 3, True), ("guaranteed_no_evict", 2, False)],
)
def test_how_many_start(make, step, drain, capacity: str, started: int, preempted: bool) -> None:
    scheduler, model = make(num_blocks=8, capacity=capacity)
    events = preemptions(scheduler)
    for i in range(3):
        scheduler.add(make_sequence(i, [i] * 4, 13))  # 16 tokens' KV: 4 blocks each in the end
    step(scheduler, model)
    assert len(scheduler.running) == started
    drain(scheduler, model)
    assert bool(events) == preempted


def test_the_last_token_needs_no_room(make, step, drain) -> None:
    scheduler, model = make(num_blocks=4, capacity="guaranteed_no_evict")
    scheduler.add(make_sequence(0, [1] * 4, 13))
    step(scheduler, model)
    assert len(scheduler.running) == 1
    drain(scheduler, model)


def test_a_shared_prefix_counts_once(make, step, drain) -> None:
    """Eight blocks: the prefix of three, and two of its own for each; unshared they need ten."""
    prompt = [0, 1, 2, 1, 0, 2, 2, 1, 0, 1, 1, 2]
    scheduler, model = make(num_blocks=7, capacity="guaranteed_no_evict")
    scheduler.add(make_sequence(0, [*prompt, 0], 8))
    step(scheduler, model)
    scheduler.add(make_sequence(1, [*prompt, 1], 8))
    step(scheduler, model)
    assert len(scheduler.running) == 2
    assert scheduler.blocks.num_used == 5
    events = preemptions(scheduler)
    drain(scheduler, model)
    assert not events


def test_a_free_cached_prefix_is_no_gift(make, step, drain) -> None:
    """Blocks that lie cached and unused are free blocks: reviving them takes them from others."""
    prompt = [0, 1, 2, 1, 0, 2, 2, 1, 0]
    scheduler, model = make(num_blocks=6, capacity="guaranteed_no_evict")
    scheduler.add(make_sequence(0, prompt, 2))
    drain(scheduler, model)
    scheduler.add(make_sequence(1, [2] * 4, 13))
    scheduler.add(make_sequence(2, prompt, 2))
    events = preemptions(scheduler)
    step(scheduler, model)
    assert len(scheduler.running) == 1, "four for the first leave two, and the second needs three"
    drain(scheduler, model)
    assert not events


@pytest.mark.parametrize(("num_blocks", "at_once"), [(9, False), (10, True)])
def test_a_fork_counts_the_copies_of_what_both_write(
    make, step, drain, num_blocks: int, at_once: bool
) -> None:
    """Parent and child share a half-written block. Both may copy it in the same step, while the
    original is still held: 1 full + 1 original + 2 copies + 3 more each."""
    scheduler, model = make(num_blocks=num_blocks, capacity="guaranteed_no_evict")
    parent = make_sequence(0, [1, 0, 1, 2, 0, 1], 15)  # 20 tokens' KV: 5 blocks
    scheduler.add(parent)
    step(scheduler, model)
    child = make_sequence(1, parent.token_ids, 14)
    scheduler.fork(parent, child)
    assert (child.status is Status.RUNNING) == at_once
    events = preemptions(scheduler)
    drain(scheduler, model)
    assert not events


def test_what_is_paused_keeps_its_guarantee(make, step, drain) -> None:
    scheduler, model = make(num_blocks=8, capacity="guaranteed_no_evict")
    events = preemptions(scheduler)
    one, two = (make_sequence(i, [i] * 4, 21) for i in range(2))  # 6 blocks each
    scheduler.add(one)
    step(scheduler, model)
    scheduler.pause(one)
    scheduler.add(two)
    scheduler.add(make_sequence(2, [2] * 4, 5))  # 2 blocks
    scheduler.resume(one)
    step(scheduler, model)
    assert [s.sequence_id for s in scheduler.running] == [0]
    drain(scheduler, model)
    assert not events


def test_a_paused_one_makes_way_when_nothing_else_can_run(make, step, drain) -> None:
    scheduler, model = make(num_blocks=8, capacity="guaranteed_no_evict")
    events = preemptions(scheduler)
    one, two = (make_sequence(i, [i] * 4, 21) for i in range(2))
    scheduler.add(one)
    step(scheduler, model)
    scheduler.pause(one)
    scheduler.add(two)
    step(scheduler, model)
    assert [s.sequence_id for s in scheduler.running] == [1]
    assert [event.cause for event in events] == ["paused, and nothing else can run"]
    assert one.status is Status.PAUSED
    scheduler.resume(one)
    drain(scheduler, model)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity", "no_evict"),
        ("preemption", "drop"),
        ("chunking", ""),
        ("chunking", None),
        ("max_prefill_tokens", 0),
        ("max_prefill_tokens", 2.5),
    ],
)
def test_settings_that_mean_nothing(make, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"SchedulerConfig.{field}"):
        make(**{field: value})
