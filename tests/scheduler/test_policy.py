"""Ordering by a user's key function, and what happens when it is no good."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from shadow import make_sequence

from workbench.errors import ConfigError
from workbench.request import Sequence, Status
from workbench.scheduler.guard import GuardedPolicy
from workbench.scheduler.policy import (
    POLICIES,
    AgedPriority,
    FairShare,
    fcfs,
    get_policy,
    policy_name,
)


class NothingKnown:
    """A scheduler that has nothing queued and nothing cached."""

    waiting: tuple[Sequence, ...] = ()
    running: tuple[Sequence, ...] = ()

    def num_cached_tokens(self, sequence: Sequence) -> int:
        return 0


NOTHING_KNOWN = NothingKnown()


def queue(lengths: list[int]) -> list[Sequence]:
    return [make_sequence(i, [0] * n, 1, priority=-n) for i, n in enumerate(lengths)]


def ids(sequences: list[Sequence]) -> list[int]:
    return [sequence.sequence_id for sequence in sequences]


def guarded(policy) -> tuple[GuardedPolicy, list[tuple[str, str]]]:
    failures: list[tuple[str, str]] = []
    return GuardedPolicy(
        policy, NOTHING_KNOWN, lambda name, trace: failures.append((name, trace))
    ), failures


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fcfs", [0, 1, 2, 3]), ("shortest_first", [1, 3, 0, 2]), ("priority", [2, 0, 1, 3])],
)
def test_named_policies(name: str, expected: list[int]) -> None:
    order, failures = guarded(get_policy(name))
    waiting = queue([5, 1, 9, 1])[::-1]
    order.sort(waiting)
    assert ids(waiting) == expected
    assert order.last(waiting).sequence_id == expected[-1]
    assert failures == []


def test_a_policy_that_raises(recwarn: pytest.WarningsRecorder) -> None:
    def mine(sequence: Sequence) -> int:
        raise RuntimeError("no idea")

    for act in ("sort", "last"):
        order, failures = guarded(mine)
        waiting = queue([1, 2, 3])[::-1]
        result = getattr(order, act)(waiting)
        assert ids(waiting) == [0, 1, 2] if act == "sort" else result.sequence_id == 2
        assert order.policy is fcfs
        assert [name for name, _ in failures] == ["mine"]
        assert "RuntimeError: no idea" in failures[0][1]
        assert "policy 'mine' raised" in str(recwarn.pop(UserWarning).message)


def test_a_policy_without_a_return_is_told_of(recwarn: pytest.WarningsRecorder) -> None:
    order, failures = guarded(lambda sequence: None)
    waiting = queue([1, 2])[::-1]
    order.sort(waiting)
    assert ids(waiting) == [0, 1]
    assert order.policy is fcfs
    assert "returned None" in failures[0][1]
    assert "returned None" in str(recwarn.pop(UserWarning).message)


def test_what_a_policy_adds_and_ends_meanwhile_is_heeded() -> None:
    waiting = queue([1, 2, 3, 4])
    late = make_sequence(9, [0], 1)

    def meddling(sequence: Sequence) -> int:
        if late not in waiting:
            waiting.append(late)
            waiting[1].status = Status.FINISHED
            del waiting[1]
        return -sequence.sequence_id

    order, failures = guarded(meddling)
    order.sort(waiting)
    assert ids(waiting) == [3, 2, 0, 9]
    assert failures == []


def test_a_queue_of_one_asks_nobody() -> None:
    order, _ = guarded(lambda sequence: 1 / 0)
    order.sort(queue([3]))
    order.sort([])
    assert order.policy is not fcfs


@pytest.mark.parametrize("wrong", ["fairest", "", "FCFS"])
def test_unknown_names(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"no such policy\. Known: fcfs, .*pass a callable"):
        get_policy(wrong)


def test_names() -> None:
    class Mine:
        def __call__(self, sequence: Sequence) -> int:
            return 0

    assert policy_name(POLICIES["priority"]) == "priority"
    assert policy_name(Mine()) == "Mine"


def timed(deadlines: list[float | None], **fields: object) -> list[Sequence]:
    sequences = queue([3] * len(deadlines))
    for sequence, deadline in zip(sequences, deadlines, strict=True):
        sequence.request = replace(sequence.request, deadline=deadline, **fields)
    return sequences


def test_deadline_first() -> None:
    order, _ = guarded(get_policy("deadline_first"))
    waiting = timed([None, 9.0, 2.0, None, 5.0])
    order.sort(waiting)
    assert ids(waiting) == [2, 4, 1, 0, 3]
    assert order.last(waiting).sequence_id == 3


def test_aged_priority() -> None:
    """A level is worth ten seconds: priority 1 that came 11 seconds earlier goes first."""
    order, _ = guarded(AgedPriority(10.0))
    waiting = queue([1, 1, 1])
    for sequence, (level, arrival) in zip(waiting, [(0, 11.0), (1, 0.0), (0, 9.0)], strict=True):
        sequence.request = replace(sequence.request, priority=level)
        sequence.metrics.arrival = arrival
    order.sort(waiting)
    assert ids(waiting) == [2, 1, 0]


def test_aged_priority_starves_nobody_and_priority_does(make, step) -> None:
    """One of low priority, against two urgent ones that arrive with every step."""
    for policy, starves in ((AgedPriority(4.0), False), ("priority", True)):
        scheduler, model = make(max_sequences=1, policy=policy)
        patient = make_sequence(0, [1, 2], 2, priority=5)
        scheduler.add(patient)
        for second in range(1, 120):
            for i in range(2):
                urgent = make_sequence(2 * second + i, [2], 2, priority=0)
                urgent.metrics.arrival = float(second)
                scheduler.add(urgent)
            step(scheduler, model)
        assert patient.finished is not starves
        for sequence in [*scheduler.waiting, *scheduler.running]:
            scheduler.finish(sequence, "abort")


def test_longest_prefix_match(make, step, drain) -> None:
    scheduler, model = make(num_blocks=40, max_sequences=1, policy="longest_prefix_match")
    shared = [0, 1, 2, 1, 0, 2, 2, 1]
    scheduler.add(make_sequence(0, [*shared, 1, 1, 1, 1, 0], 2))
    drain(scheduler, model)
    for i, prompt in enumerate([[2] * 9, [*shared, 0], [*shared, 1, 1, 1, 1, 2], [1] * 9], 1):
        scheduler.add(make_sequence(i, prompt, 2))
    first = []
    while scheduler.num_unfinished:
        for sequence in step(scheduler, model).sequences:
            if sequence.sequence_id not in first:
                first.append(sequence.sequence_id)
    assert first == [3, 2, 1, 4]


def served(make, step, policy, tenants: str, steps: int, **settings: object) -> dict[str, int]:
    """Return the tokens made for each tenant, whose requests all wait from the start."""
    scheduler, model = make(num_blocks=60, policy=policy, **settings)
    made: Counter[str] = Counter()
    for i, tenant in enumerate(tenants):
        sequence = make_sequence(i, [i % 3] * 4, 6)
        sequence.request = replace(sequence.request, tenant=tenant)
        scheduler.add(sequence)
    for _ in range(steps):
        for sequence in step(scheduler, model).sequences:
            made[sequence.request.tenant] += 1
    for sequence in [*scheduler.waiting, *scheduler.running]:
        scheduler.finish(sequence, "abort")
    return made


def test_fair_share_alternates_between_tenants(make, step) -> None:
    """Twenty of tenant a came first; b and c are served as much all the same."""
    tenants = "a" * 20 + "b" * 8 + "c" * 8
    for settings in ({"max_sequences": 1}, {"max_sequences": 3}):
        made = served(make, step, "fair_share", tenants, 36, **settings)
        assert max(made.values()) - min(made.values()) <= 12, made
        assert served(make, step, "fcfs", tenants, 36, max_sequences=1)["c"] == 0


def test_fair_share_by_weight(make, step) -> None:
    made = served(make, step, FairShare({"a": 3.0}), "b" * 20 + "a" * 20, 96, max_sequences=1)
    assert made["a"] == pytest.approx(72, abs=12)


def test_who_was_away_saves_nothing_up(make, step) -> None:
    """b comes when a has been served long: it then gets half, not everything until it is level."""
    scheduler, model = make(num_blocks=60, policy="fair_share", max_sequences=1)
    made: Counter[str] = Counter()
    for i in range(60):
        sequence = make_sequence(i, [i % 3] * 4, 6)
        sequence.request = replace(sequence.request, tenant="a" if i < 40 else "b")
        if i < 40:
            scheduler.add(sequence)
        else:
            late = [*locals().get("late", []), sequence]
    for number in range(150):
        if number == 90:
            for sequence in late:
                scheduler.add(sequence)
        for sequence in step(scheduler, model).sequences:
            made[sequence.request.tenant] += number >= 90
    assert made["a"] == pytest.approx(30, abs=7)
    account = scheduler._order._key_of.served
    assert abs(account["a"] - account["b"]) <= 20
    for sequence in [*scheduler.waiting, *scheduler.running]:
        scheduler.finish(sequence, "abort")
    assert scheduler.schedule().sequences == []
    assert account is not scheduler._order._key_of.served
    assert scheduler._order._key_of.served == {}, "with nobody there, there is no account to keep"


def test_a_bound_policy_that_raises_is_replaced(make, step, drain, recwarn) -> None:
    class Accounts:
        def bind(self, scheduler: object) -> Accounts:
            return self

        def __call__(self, sequence: Sequence) -> int:
            return 0

        def committed(self, plan: object) -> None:
            raise RuntimeError("lost the book")

    scheduler, model = make(policy=Accounts())
    scheduler.add(make_sequence(0, [1, 2], 3))
    drain(scheduler, model)
    assert scheduler.policy is fcfs
    assert "lost the book" in str(recwarn.pop(UserWarning).message)


def test_a_policy_that_is_set_again_keeps_its_accounts(make) -> None:
    scheduler, _ = make(policy="fair_share")
    bound = scheduler._order._key_of
    scheduler.policy = POLICIES["fair_share"]
    assert scheduler._order._key_of is bound
    scheduler.policy = FairShare()
    assert scheduler._order._key_of is not bound
    assert policy_name(scheduler.policy) == "FairShare"


@pytest.mark.parametrize("make_wrong", [lambda: AgedPriority(0), lambda: FairShare({"a": -1})])
def test_policies_that_make_no_sense(make_wrong) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        make_wrong()
