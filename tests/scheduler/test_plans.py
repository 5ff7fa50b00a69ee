"""What a plan holds: budgets, rows, copies of forks, and plans that must not be committed."""

from __future__ import annotations

import pytest
from shadow import ShadowModel, make_sequence

from workbench.cache import KVCache
from workbench.request import Status
from workbench.results import SampledTokens
from workbench.scheduler import Scheduler
from workbench.scheduler.books import Books, StalePlan, StepInProgress


def test_decodes_come_first_and_the_budget_is_used(make, step) -> None:
    scheduler, model = make(max_batch_tokens=8)
    for i, length in enumerate([3, 20, 2]):
        scheduler.add(make_sequence(i, [i] * length, 9))
    rows = []
    for _ in range(5):
        plan = step(scheduler, model)
        ids = [s.sequence_id for s in plan.sequences]
        rows.append((list(zip(ids, plan.starts, plan.num_new, strict=True)), plan.num_decodes))
    assert rows == [
        ([(0, 0, 3), (1, 0, 5)], 0),
        ([(0, 3, 1), (1, 5, 7)], 1),
        ([(0, 4, 1), (1, 12, 7)], 1),
        ([(0, 5, 1), (1, 19, 1), (2, 0, 2)], 2),
        ([(0, 6, 1), (1, 20, 1), (2, 2, 1)], 3),
    ]


def test_a_row_samples_when_it_has_caught_up(make, step) -> None:
    scheduler, model = make(max_batch_tokens=4, max_sequences=4)
    scheduler.add(make_sequence(0, [1] * 9, 2))
    sampled = [step(scheduler, model).sampled for _ in range(4)]
    assert sampled == [[], [], [0], [0]]


def test_what_was_planned_and_failed_is_planned_again(make, step) -> None:
    scheduler, model = make(max_batch_tokens=8)
    for i in range(3):
        scheduler.add(make_sequence(i, [i] * 6, 4))
    step(scheduler, model)
    first, again = scheduler.schedule(), scheduler.schedule()
    assert again.step == first.step + 1
    for name in ("sequences", "starts", "num_new", "sampled", "num_decodes", "copies"):
        assert getattr(again, name) == getattr(first, name), name
    scheduler.commit(again, model.run(again))
    while scheduler.num_unfinished:
        step(scheduler, model)
    assert scheduler.blocks.num_used == 0


def test_an_unsplittable_prompt_is_planned_whole_again(make, step) -> None:
    scheduler, model = make(max_batch_tokens=8, chunked_prefill=False)
    scheduler.add(make_sequence(0, [1, 2], 6))
    step(scheduler, model)
    scheduler.add(make_sequence(1, [3] * 7, 2))
    for _ in range(2):
        plan = scheduler.schedule()
        assert plan.num_new == [1, 7]
    scheduler.add(make_sequence(2, [4] * 8, 2))
    scheduler.commit(plan, model.run(plan))
    for _ in range(3):
        plan = scheduler.schedule()
        assert [n for n in plan.num_new if n > 1] in ([], [8])
    scheduler.commit(plan, model.run(plan))
    while scheduler.num_unfinished:
        step(scheduler, model)


def test_only_the_latest_plan_is_committed_and_once(make, step) -> None:
    scheduler, model = make()
    scheduler.add(make_sequence(0, [1, 2, 3], 5))
    stale, plan = scheduler.schedule(), scheduler.schedule()
    sampled = model.run(plan)
    with pytest.raises(StalePlan, match="plan of step 1: committed before, or replaced by step 2"):
        scheduler.commit(stale, sampled)
    scheduler.commit(plan, sampled)
    with pytest.raises(StalePlan, match="Commit each plan once"):
        scheduler.commit(plan, sampled)
    assert scheduler.running[0].num_output_tokens == 1
    while scheduler.num_unfinished:
        step(scheduler, model)


def test_a_sequence_aborted_while_it_ran_gets_no_token(make, step) -> None:
    scheduler, model = make()
    one, two = make_sequence(0, [1, 2, 3], 5), make_sequence(1, [4, 5], 5)
    scheduler.add(one)
    scheduler.add(two)
    plan = scheduler.schedule()
    sampled = model.run(plan)
    scheduler.finish(one, "abort")
    scheduler.finish(one, "length")  # the first reason stays
    assert scheduler.commit(plan, sampled) == []
    assert (one.num_output_tokens, two.num_output_tokens) == (0, 1)
    assert one.finish_reason == "abort"
    while scheduler.num_unfinished:
        step(scheduler, model)


def test_a_fork_of_a_fork_whose_copies_wait(make, step) -> None:
    """A failed step leaves a copy pending; a fork of its destination asks for a copy of that."""
    scheduler, model = make()
    first = make_sequence(0, [1, 0, 1, 2, 0, 1], 6)
    scheduler.add(first)
    step(scheduler, model)
    children = [make_sequence(i, first.token_ids, 6) for i in (1, 2, 3)]
    scheduler.fork(first, children[0])
    assert scheduler.schedule().copies, "planned, and never run"
    scheduler.fork(first, children[1])
    assert scheduler.schedule().copies
    scheduler.fork(children[0], children[2])
    plan = scheduler.schedule()
    sources = {source for source, _ in plan.copies}
    assert sources & {destination for _, destination in plan.copies}, "one builds on another"
    scheduler.commit(plan, model.run(plan))
    while scheduler.num_unfinished:
        step(scheduler, model)
    assert len({tuple(child.token_ids) for child in children}) == 1


def test_a_fork_without_room_waits(make, step) -> None:
    scheduler, model = make(max_sequences=1)
    first = make_sequence(0, [1, 2, 0, 1, 2], 5)
    scheduler.add(first)
    step(scheduler, model)
    child = make_sequence(1, first.token_ids, 3)
    scheduler.fork(first, child)
    assert child.status is Status.WAITING
    while scheduler.num_unfinished:
        step(scheduler, model)
    assert child.token_ids[:9] == first.token_ids[:9]


def test_a_fork_from_before_the_window_waits(step) -> None:
    cache = KVCache(
        num_layers=2, num_kv_heads=1, head_dim=1, num_blocks=20, block_size=2, windows=(None, 3)
    )
    scheduler, model = Scheduler(cache), ShadowModel(cache.blocks)
    parent = make_sequence(0, [1, 2, 0, 1, 2], 20)
    scheduler.add(parent)
    for _ in range(12):
        step(scheduler, model)
    near = make_sequence(1, parent.token_ids[:-1], 5)
    far = make_sequence(2, parent.token_ids[:8], 5)
    scheduler.fork(parent, near)
    scheduler.fork(parent, far)
    assert (near.status, far.status) == (Status.RUNNING, Status.WAITING)
    while scheduler.num_unfinished:
        step(scheduler, model)
        cache.check()
    assert far.token_ids == parent.token_ids[:13]


def test_the_queues_are_copies(make, step) -> None:
    scheduler, model = make(max_sequences=1)
    for i in range(3):
        scheduler.add(make_sequence(i, [i], 2))
    step(scheduler, model)
    scheduler.waiting.clear()
    scheduler.running.clear()
    assert (len(scheduler.waiting), len(scheduler.running)) == (2, 1)
    while scheduler.num_unfinished:
        step(scheduler, model)


def test_an_empty_plan_is_a_plan(make) -> None:
    scheduler, _ = make()
    plan = scheduler.schedule()
    assert not plan
    assert scheduler.commit(plan, SampledTokens([])) == []
    assert "0 tokens in 0 rows" in plan._repr_html_()


def test_the_books_open_once() -> None:
    books = Books()
    with books.open("commit"):
        assert books.busy == "commit"
        with pytest.raises(StepInProgress, match="abort: refused during commit"):
            books.require_closed("abort")
        with pytest.raises(StepInProgress), books.open("finish"):
            pass
        assert books.busy == "commit"
    assert books.busy is None
    with pytest.raises(ZeroDivisionError), books.open("schedule"):
        raise ZeroDivisionError
    assert books.busy is None
