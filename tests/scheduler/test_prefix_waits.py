"""A prefix that a running sequence computes is waited for: never in vain, never for too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shadow import ShadowModel, make_sequence, watch_passed

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.events import Event, PrefixAwaited, PrefixHit
from workbench.request import Sequence, Status
from workbench.results import SampledTokens
from workbench.scheduler import Scheduler, planner
from workbench.scheduler.prefix_waits import common_blocks

SIZE = 4
LONG = [i * i % 7 % 3 for i in range(200)]
PREFIX = LONG[: 6 * SIZE]


def watch(scheduler: Scheduler) -> list[Event]:
    events: list[Event] = []
    scheduler.bus.subscribe(events.append)
    return events


def awaited(events: list[Event]) -> list[tuple[int, int, int]]:
    """Return (who waits, for whom, tokens) in order."""
    found = [event for event in events if isinstance(event, PrefixAwaited)]
    return [(event.sequence_id, event.leader_id, event.num_tokens) for event in found]


def with_tails(count: int, prefix: list[int] = PREFIX, max_tokens: int = 3) -> list[Sequence]:
    """Return sequences with a prefix and three tokens that tell them apart."""
    return [make_sequence(i, [*prefix, 100 + i, 1, 2], max_tokens) for i in range(count)]


def prompt_tokens(scheduler: Scheduler, model: ShadowModel, step: Any) -> int:
    """Run to the end; return how many prompt tokens were computed."""
    total = 0
    while scheduler.num_unfinished:
        plan = step(scheduler, model)
        for sequence, start, num_new in zip(plan.sequences, plan.starts, plan.num_new, strict=True):
            total += max(0, min(start + num_new, sequence.num_prompt_tokens) - start)
    return total


@pytest.mark.parametrize("windows", [(), (5,), (None, 5), (2, 9, None)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_batch_tokens": 10},
        {"max_batch_tokens": 10, "chunking": "equal_progress"},
        {"max_prefill_tokens": 7, "chunking": "equal_progress"},
        {"chunked_prefill": False, "max_batch_tokens": 60},
        {"capacity": "guaranteed_no_evict"},
        {"max_sequences": 2},
        {"max_sequences": 1},
        {"policy": "longest_prefix_match"},
        {"policy": "fair_share"},
        {"partial_reuse": False},
    ],
    ids=str,
)
def test_a_shared_prefix_is_computed_once(
    make, step, windows: tuple[int | None, ...], config: dict[str, Any]
) -> None:
    computed = {}
    for wait in (True, False):
        scheduler, model = make(80, SIZE, windows=windows, prefix_wait=wait, **config)
        for sequence in with_tails(8):
            scheduler.add(sequence)
        computed[wait] = prompt_tokens(scheduler, model, step)
    assert computed[True] == len(PREFIX) + 8 * 3
    serial = config.get("max_sequences") == 1
    assert computed[False] > computed[True] or serial, "the comparison compares nothing"


def test_one_step_for_the_prefix_and_one_for_the_rest(make, step) -> None:
    scheduler, model = make(80)
    events = watch(scheduler)
    for sequence in with_tails(8):
        scheduler.add(sequence)
    assert step(scheduler, model).num_new == [len(PREFIX) + 3]
    assert step(scheduler, model).num_new == [1, *[3] * 7]
    assert awaited(events) == [(i, 0, len(PREFIX)) for i in range(1, 8)], "told once each"
    hits = [event.num_tokens for event in events if isinstance(event, PrefixHit)]
    assert hits == [len(PREFIX)] * 7


def test_prefixes_within_prefixes(make, step) -> None:
    """A is the beginning of B and B of C: each waits for the next smaller one and its own part."""
    scheduler, model = make(80)
    events = watch(scheduler)
    a, b, c = LONG[:9], LONG[:21], LONG[:33]
    for i, prompt in enumerate([a, b, c, c]):
        scheduler.add(make_sequence(i, prompt, 30))
    planned = [sum(step(scheduler, model).num_new) for _ in range(4)]
    # 32 tokens of full blocks are the same, then each has its last token; and the decodes.
    assert planned == [9, 1 + (21 - 8), 2 + (33 - 20), 3 + 1]
    assert awaited(events) == [(1, 0, 8), (2, 0, 8), (3, 0, 8), (2, 1, 20), (3, 1, 20), (3, 2, 32)]
    prompt_tokens(scheduler, model, step)


def test_those_behind_that_share_nothing_start_at_once(make, step) -> None:
    scheduler, model = make(80)
    first, second = with_tails(2)
    other = make_sequence(2, [2, 2, 2, *PREFIX], 3)
    elsewhere = make_sequence(3, first.token_ids, 3, namespace="salt")
    for sequence in (first, second, other, elsewhere):
        scheduler.add(sequence)
    plan = step(scheduler, model)
    assert plan.sequences == [first, other, elsewhere]
    assert scheduler.waiting == [second]
    assert step(scheduler, model).sequences == [first, other, elsewhere, second]
    prompt_tokens(scheduler, model, step)


def _fail(scheduler: Scheduler, leader: Sequence) -> None:
    leader.error = "it cannot go on"
    scheduler.finish(leader, "error")


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda s, leader: s.finish(leader, "abort"), id="aborted"),
        pytest.param(_fail, id="failed"),
        pytest.param(lambda s, leader: s.pause(leader), id="paused"),
        pytest.param(lambda s, leader: s.pause(leader, release=True), id="released"),
    ],
)
def test_without_its_leader_a_follower_goes_on(make, step, drain, end: Callable[..., Any]) -> None:
    """In the very next plan, with what was computed for it; the others then follow that one."""
    config = {"chunking": "equal_progress", "max_prefill_tokens": 2 * SIZE}
    scheduler, model = make(80, **config)
    events = watch(scheduler)
    leader, second, third = with_tails(3)
    for sequence in (leader, second, third):
        scheduler.add(sequence)
    step(scheduler, model)
    step(scheduler, model)
    assert leader.num_computed == 4 * SIZE
    end(scheduler, leader)
    plan = step(scheduler, model)
    assert (plan.sequences, plan.starts) == ([second], [4 * SIZE])
    assert awaited(events)[2:] == [(2, 1, len(PREFIX))]
    if leader.status is Status.PAUSED:
        scheduler.resume(leader)
    drain(scheduler, model)
    assert third.metrics.num_cached_tokens == len(PREFIX)


def test_a_preempted_leader(make, step, drain) -> None:
    """A decode takes its blocks. Whoever then comes first computes what is not in the cache."""
    scheduler, model = make(10, max_batch_tokens=9)
    long = make_sequence(0, LONG[50:57], 16)
    scheduler.add(long)
    step(scheduler, model)
    leader, follower = (make_sequence(i, [*LONG[:29], i], 2) for i in (1, 2))
    scheduler.add(leader)
    scheduler.add(follower)
    events = watch(scheduler)
    drain(scheduler, model)
    kinds = [type(event).__name__ for event in events]
    assert "Preempted" in kinds
    assert follower.finish_reason == leader.finish_reason == "length"


@pytest.mark.parametrize("victim", [1, 2])
def test_preempted_between_two_steps(make, step, drain, victim: int) -> None:
    scheduler, model = make(80, max_batch_tokens=8)
    sequences = with_tails(3)
    for sequence in sequences:
        scheduler.add(sequence)
    for _ in range(victim):
        step(scheduler, model)
    scheduler._queues.preempt(sequences[0], "for the test")
    done = prompt_tokens(scheduler, model, step)
    assert done <= len(PREFIX) + 3 * 3, "what was published is found again"


def test_nothing_is_gained(make, step) -> None:
    """No wait for less than a block, nor for what the leader is past or not yet at."""
    scheduler, model = make(80)
    events = watch(scheduler)
    scheduler.add(make_sequence(0, LONG[:23], 1))
    step(scheduler, model)  # blocks 0 to 4 are there, and finished
    scheduler.add(make_sequence(1, [*LONG[:23], 1, 1, 1], 1))
    scheduler.add(make_sequence(2, [*LONG[:22], 2, 2, 2], 1))  # shares two tokens of block 5
    scheduler.add(make_sequence(3, LONG[:24], 1))  # its last token is computed in any case
    assert len(step(scheduler, model).sequences) == 3
    assert not awaited(events)


def test_what_a_copy_spares_is_no_gain(make, step) -> None:
    """Three of four tokens of the awaited block can be copied already."""
    scheduler, model = make(80)
    events = watch(scheduler)
    scheduler.add(make_sequence(0, [*LONG[:7], 2 - LONG[7]], 1))
    step(scheduler, model)
    one, two = (make_sequence(i, [*LONG[:8], *[i] * 8], 1) for i in (1, 2))
    scheduler.add(one)
    scheduler.add(two)
    assert step(scheduler, model).sequences == [one, two]
    assert not awaited(events)


def test_the_wait_ends_with_the_last_block_that_can_be_used(make, step, drain) -> None:
    """The last token is computed in any case, so of an equal prompt not all blocks are awaited."""
    scheduler, model = make(80, chunking="equal_progress", max_prefill_tokens=SIZE)
    leader, follower = (make_sequence(i, PREFIX, 1) for i in (0, 1))
    scheduler.add(leader)
    scheduler.add(follower)
    while not follower.num_computed:
        step(scheduler, model)
    assert leader.num_computed < len(PREFIX)
    drain(scheduler, model)
    assert follower.metrics.num_cached_tokens == len(PREFIX) - SIZE


@pytest.mark.parametrize("config", [{"prefix_wait": False}, {"prefix_reuse": False}], ids=str)
def test_off(make, step, config: dict[str, Any]) -> None:
    scheduler, model = make(80, **config)
    events = watch(scheduler)
    sequences = with_tails(4)
    for sequence in sequences:
        scheduler.add(sequence)
    assert step(scheduler, model).sequences == sequences
    assert not awaited(events)
    prompt_tokens(scheduler, model, step)


def test_who_reports_on_each_token_waits_for_none(make, step) -> None:
    """It has to compute the prefix itself; and who has more of it in the cache overtakes it."""
    scheduler, model = make(80, max_batch_tokens=16, chunking="equal_progress")
    cached = make_sequence(0, LONG[:17], 1)
    scheduler.add(cached)
    step(scheduler, model)
    step(scheduler, model)
    scores, plain = make_sequence(1, LONG[:40], 2), make_sequence(2, LONG[:40], 2)
    scores.prompt_logprobs = [None]
    other = make_sequence(3, LONG[:40], 2)
    other.prompt_logprobs = [None]
    events = watch(scheduler)
    for sequence in (scores, plain, other):
        scheduler.add(sequence)
    prompt_tokens(scheduler, model, step)
    assert awaited(events) == []


def test_thousands_that_wait_are_asked_once(make, step, monkeypatch: Any) -> None:
    """A step looks up no more than a bounded number, and none again before its wait is over."""
    monkeypatch.setattr(planner, "MAX_FOUND_WAITING", 50)
    count, steps = 500, 20
    scheduler, model = make(1000, chunking="equal_progress", max_prefill_tokens=SIZE)
    lookups: list[int] = []
    original = scheduler.blocks.lookup
    monkeypatch.setattr(
        scheduler.blocks, "lookup", lambda *a, **k: lookups.append(0) or original(*a, **k)
    )
    for sequence in with_tails(count, LONG[: 4 * steps], 1):
        scheduler.add(sequence)
    each = []
    for _ in range(steps):
        lookups.clear()
        step(scheduler, model)
        each.append(len(lookups))
    assert each == [51, *[50] * 8, 49, *[0] * (steps - 10)]
    assert prompt_tokens(scheduler, model, step) <= 3 * count + 4


def test_common_blocks() -> None:
    assert common_blocks([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], 2, 0) == 2
    assert common_blocks([1, 2, 3, 4], [1, 2, 3, 4], 2, 1) == 2
    assert common_blocks([1, 2, 3], [1, 2, 3, 4], 2, 0) == 1
    assert common_blocks([9, 2], [1, 2], 2, 0) == 0
    assert common_blocks([1], [1], 2, 0) == 0


PROMPTS = st.lists(
    st.builds(
        lambda common, tail: LONG[:common] + tail,
        st.sampled_from([0, 3, 4, 8, 9, 20, 33, 60]),
        st.lists(st.integers(0, 2), min_size=1, max_size=6),
    ),
    min_size=2,
    max_size=12,
)
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["abort", "pause", "release", "resume"]), st.integers(0, 11)),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    PROMPTS,
    ACTIONS,
    st.sampled_from([(), (), (5,), (None, 3)]),
    st.integers(1, 4),
    st.integers(4, 40),
    st.integers(24, 80),
    st.sampled_from(["first_come", "equal_progress"]),
)
def test_first_come_is_first_served_or_computed_for(
    prompts: list[list[int]],
    actions: list[tuple[str, int]],
    windows: tuple[int | None, ...],
    max_sequences: int,
    budget: int,
    num_blocks: int,
    chunking: Any,
) -> None:
    """Under `fcfs`, whatever is aborted and paused: nobody is passed but for a prefix that this
    very step computes, so nobody waits longer than that takes; and all end."""
    cache = KVCache(
        num_layers=len(windows),
        num_kv_heads=1,
        head_dim=1,
        num_blocks=num_blocks,
        block_size=SIZE,
        windows=windows,
    )
    config = SchedulerConfig(
        max_sequences=max_sequences, max_batch_tokens=budget, chunking=chunking
    )
    scheduler, model = Scheduler(cache, config), ShadowModel(cache.blocks)
    sequences = [make_sequence(i, prompt, 4) for i, prompt in enumerate(prompts)]
    for sequence in sequences:
        scheduler.add(sequence)
    passed = watch_passed(scheduler)
    for turn in range(600):
        if turn % 2 and turn // 2 < len(actions):
            _act(scheduler, sequences, *actions[turn // 2])
        if turn > 2 * len(actions):
            for sequence in sequences:
                scheduler.resume(sequence)
        passed.clear()
        before = {s.sequence_id for s in scheduler.waiting}
        plan = _step(scheduler, model)
        assert all(leader in [*plan.sequences, *plan.preempted] for _, leader in passed)
        started = before & {s.sequence_id for s in plan.sequences}
        followers = [sequence for sequence, _ in passed]
        for sequence in scheduler.waiting:
            if any(number > sequence.sequence_id for number in started):
                assert sequence in followers or sequence in plan.preempted
        if all(sequence.finished for sequence in sequences):
            break
    assert all(sequence.finished for sequence in sequences)
    assert cache.blocks.num_used == 0
    assert not scheduler._queues.prefix_waits._awaited


def _act(scheduler: Scheduler, sequences: list[Sequence], action: str, place: int) -> None:
    sequence = sequences[place % len(sequences)]
    match action:
        case "abort":
            scheduler.finish(sequence, "abort")
        case "resume":
            scheduler.resume(sequence)
        case _:
            scheduler.pause(sequence, release=action == "release")


def _step(scheduler: Scheduler, model: ShadowModel) -> StepPlan:
    plan = scheduler.schedule()
    scheduler.commit(plan, model.run(plan) if plan else SampledTokens([]))
    scheduler.blocks.check()
    return plan
