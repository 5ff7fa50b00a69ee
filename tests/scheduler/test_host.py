"""Blocks that leave for the host and come back: by eviction, by swap, and when a step fails."""

from __future__ import annotations

import pytest
from shadow import TransferFailed, make_sequence

from workbench.errors import ConfigError
from workbench.events import BlockOffloaded, BlockRestored, Event, Preempted, PrefixHit, SwappedIn
from workbench.request import Status
from workbench.retention import Retention, resolve

PROMPT = [0, 1, 2, 1, 0, 2, 2, 1, 0, 1, 1, 2, 0]


def listen(scheduler) -> list[Event]:
    events: list[Event] = []
    scheduler.bus.subscribe(events.append)
    return events


def of(events: list[Event], kind: type[Event]) -> list:
    return [event for event in events if type(event) is kind]


def evicted_prefix(make, drain):
    """Return a scheduler in which `PROMPT` was computed and then pushed out to the host."""
    scheduler, model = make(num_blocks=6, host_blocks=8)
    scheduler.add(make_sequence(0, PROMPT, 3))
    drain(scheduler, model)
    scheduler.add(make_sequence(1, [2] * 18, 6))
    drain(scheduler, model)
    assert scheduler.blocks.lookup(PROMPT).block_ids == ()
    return scheduler, model


def test_an_evicted_prefix_comes_back(make, drain) -> None:
    scheduler, model = evicted_prefix(make, drain)
    events = listen(scheduler)
    scheduler.add(make_sequence(2, PROMPT, 3))
    drain(scheduler, model)
    assert [event.num_tokens for event in of(events, PrefixHit)] == [12]
    assert len(of(events, BlockRestored)) == 3
    scheduler.add(make_sequence(3, PROMPT, 3))
    drain(scheduler, model)
    assert len(of(events, BlockRestored)) == 3, "what came back is found on the device"


def test_two_that_start_together_share_what_comes_back(make, drain) -> None:
    scheduler, model = evicted_prefix(make, drain)
    events = listen(scheduler)
    for i in (2, 3):
        scheduler.add(make_sequence(i, PROMPT, 2))
    drain(scheduler, model)
    assert len(of(events, BlockRestored)) == 3
    assert [event.num_tokens for event in of(events, PrefixHit)] == [12, 12]


def test_what_never_came_back_is_not_found(make, drain) -> None:
    """Ended between the plan and its run: the blocks given to it hold nothing."""
    scheduler, model = evicted_prefix(make, drain)
    two = make_sequence(2, PROMPT, 3)
    scheduler.add(two)
    scheduler.schedule()
    assert scheduler.blocks.host.restoring
    scheduler.finish(two, "abort")
    assert not scheduler.blocks.host.restoring
    assert scheduler.blocks.lookup(PROMPT).block_ids == ()
    assert len(scheduler.blocks.lookup(PROMPT).slots) == 3
    scheduler.add(make_sequence(3, PROMPT, 3))
    drain(scheduler, model)


@pytest.mark.parametrize("reuse", [True, False])
def test_swapped_out_while_it_is_being_restored(make, step, drain, reuse: bool) -> None:
    """Its KV is still on the host; the blocks given to it hold nothing yet."""
    scheduler, model = make(num_blocks=6, host_blocks=8, preemption="swap", prefix_reuse=reuse)
    one = make_sequence(0, PROMPT, 3)
    scheduler.add(one)
    step(scheduler, model)
    scheduler.pause(one, release=True)
    scheduler.add(make_sequence(1, [2] * 18, 6))
    while scheduler.num_unfinished:
        step(scheduler, model)
    scheduler.resume(one)
    scheduler.schedule()
    assert len(scheduler.blocks.host.restoring) == 4
    owed = dict(scheduler.blocks.host.offloading)
    scheduler.pause(one, release=True)
    scheduler.blocks.check()
    assert scheduler.blocks.host.offloading == owed, "no block of it is copied"
    scheduler.resume(one)
    drain(scheduler, model)


def test_a_copy_owed_to_a_paused_sequence_survives_an_empty_step(make, step, drain) -> None:
    scheduler, model = make()
    parent = make_sequence(0, [1, 0, 1, 2, 0, 1], 6)
    scheduler.add(parent)
    step(scheduler, model)
    child = make_sequence(1, parent.token_ids, 6)
    scheduler.fork(parent, child)
    assert scheduler.schedule().copies
    scheduler.pause(parent)
    scheduler.pause(child)
    assert not step(scheduler, model)
    scheduler.resume(parent)
    scheduler.resume(child)
    drain(scheduler, model)


def test_swapped_out_before_its_copy_was_made(make, step, drain) -> None:
    """What goes to the host is the source's content: the copy holds nothing yet."""
    scheduler, model = make(host_blocks=8, preemption="swap")
    parent = make_sequence(0, [1, 0, 1, 2, 0, 1], 6)
    scheduler.add(parent)
    step(scheduler, model)
    child = make_sequence(1, parent.token_ids, 6)
    scheduler.fork(parent, child)
    (source, destination), *_ = scheduler.schedule().copies
    for sequence in (parent, child):
        scheduler.pause(sequence, release=True)
    moved = scheduler.blocks.host.offloading.values()
    assert source in moved
    assert destination not in moved
    for sequence in (parent, child):
        scheduler.resume(sequence)
    drain(scheduler, model)
    assert parent.token_ids == child.token_ids[:12]


@pytest.mark.parametrize("reuse", [True, False])
def test_swap_keeps_the_work(make, step, drain, reuse: bool) -> None:
    scheduler, model = make(num_blocks=7, host_blocks=16, preemption="swap", prefix_reuse=reuse)
    events = listen(scheduler)
    for i in range(3):
        scheduler.add(make_sequence(i, [i] * 6, 16))
    computed = 0
    while scheduler.num_unfinished:
        computed += step(scheduler, model).num_tokens
    preempted = of(events, Preempted)
    assert preempted
    assert {event.kind for event in preempted} == {"swap"}
    assert len(of(events, SwappedIn)) == len(preempted)
    assert computed == 3 * (6 + 15), "nothing was computed twice"
    drain(scheduler, model)


def test_a_full_host_is_told_and_recomputed(make, drain) -> None:
    scheduler, model = make(num_blocks=7, host_blocks=1, preemption="swap")
    events = listen(scheduler)
    for i in range(3):
        scheduler.add(make_sequence(i, [i] * 6, 16))
    drain(scheduler, model)
    causes = {event.cause.split("; ")[-1] for event in of(events, Preempted)}
    assert causes == {"not swapped out, the host tier is full"}
    assert {event.kind for event in of(events, Preempted)} == {"recompute"}


def test_ending_a_swapped_sequence_frees_its_slots(make, step) -> None:
    scheduler, model = make(host_blocks=4, preemption="swap", prefix_reuse=False)
    one = make_sequence(0, PROMPT, 8)
    scheduler.add(one)
    step(scheduler, model)
    scheduler.pause(one, release=True)
    host = scheduler.blocks.host
    assert host.num_free == 0
    step(scheduler, model)
    scheduler.finish(one, "abort")
    assert host.num_free == 4
    assert one.status is Status.FINISHED
    scheduler.blocks.check()


def test_transfers_that_fail_are_made_the_next_time(make, step, drain) -> None:
    scheduler, model = make(num_blocks=7, host_blocks=16, preemption="swap")
    failures = 0
    for i in range(3):
        scheduler.add(make_sequence(i, [i, *PROMPT[:5]], 16))
    while scheduler.num_unfinished:
        plan = scheduler.schedule()
        for left in range(20):
            model.transfers_left = left
            try:
                sampled = model.run(plan)
                break
            except TransferFailed:
                failures += 1
                scheduler.blocks.check()
                plan = scheduler.schedule()
        else:
            pytest.fail("no step moves so many blocks")
        scheduler.commit(plan, sampled)
    assert failures > 3
    model.transfers_left = 10**9
    drain(scheduler, model)


def test_the_least_recently_used_content_leaves_the_host(make, drain) -> None:
    scheduler, model = make(num_blocks=4, host_blocks=4)
    prompts = [[i] * 8 + [2, 1, 0] for i in range(3)]
    for i, prompt in enumerate(prompts):
        scheduler.add(make_sequence(i, prompt, 2))
        drain(scheduler, model)
    host = scheduler.blocks.host
    assert host.num_findable == 4
    scheduler.add(make_sequence(9, [0, 1] * 6, 4))
    drain(scheduler, model)
    found = [scheduler.blocks.lookup(prompt).num_tokens for prompt in prompts]
    assert found[0] < found[2]
    events = listen(scheduler)
    scheduler.blocks.clear_cached()
    assert host.num_findable == host.num_slots - host.num_free == 0
    assert not of(events, BlockOffloaded), "what is cleared by hand does not go to the host"


def test_swapping_needs_a_host_tier(make) -> None:
    with pytest.raises(ConfigError, match="preemption='swap': the cache has no host tier"):
        make(preemption="swap")


@pytest.mark.parametrize("priority", [34, 35, 100])
def test_what_is_hardly_worth_keeping_is_not_offloaded(make, drain, priority: int) -> None:
    scheduler, model = make(num_blocks=6, host_blocks=8)
    kept = resolve([Retention(priority=priority), Retention(priority=0, part="decode")], 13)
    scheduler.add(make_sequence(0, PROMPT, 3, retention=kept))
    drain(scheduler, model)
    for i in (1, 2):
        scheduler.add(make_sequence(i, [i] * 18, 6))
        drain(scheduler, model)
    found = scheduler.blocks.lookup(PROMPT)
    assert len(found.block_ids) + len(found.slots) == (3 if priority >= 35 else 0)


@pytest.mark.parametrize("expired", [False, True])
def test_a_low_priority_whose_time_is_over_no_longer_counts(make, drain, expired: bool) -> None:
    """Then its blocks go to the host as any other's."""
    scheduler, model = make(num_blocks=6, host_blocks=8)
    (pool,) = (group.pool for group in scheduler.blocks.groups)
    now = 100.0
    pool.cached.clock = lambda: now
    kept = resolve([Retention(priority=0, seconds=5)], 13)
    scheduler.add(make_sequence(0, PROMPT, 3, retention=kept))
    drain(scheduler, model)
    now += 4.9 + 0.2 * expired
    for i in (1, 2):
        scheduler.add(make_sequence(i, [i] * 18, 6))
        drain(scheduler, model)
    assert len(scheduler.blocks.lookup(PROMPT).slots) == (3 if expired else 0)


def test_a_whole_block_on_the_host_comes_before_part_of_one_here(make, drain) -> None:
    """Device: another block that begins alike. Host: the very block, whole."""
    scheduler, model = make(num_blocks=4, host_blocks=8)
    prompt = [0, 1, 2, 1, 0, 2, 2, 1, 0]
    scheduler.add(make_sequence(0, prompt, 2))
    drain(scheduler, model)
    scheduler.add(make_sequence(1, [2] * 12, 4))
    drain(scheduler, model)
    scheduler.add(make_sequence(2, [0, 1, 2, 0, 1, 1, 1], 2))
    drain(scheduler, model)
    found = scheduler.blocks.lookup(prompt)
    assert (found.num_tokens, found.num_copied, len(found.slots)) == (8, 0, 2)
    assert scheduler.blocks.lookup([0, 1, 2, 2, 0]).num_copied == 3
    scheduler.add(make_sequence(3, prompt, 2))
    drain(scheduler, model)
