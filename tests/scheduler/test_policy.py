"""Ordering by a user's key function, and what happens when it is no good."""

from __future__ import annotations

import pytest
from shadow import make_sequence

from workbench.errors import ConfigError
from workbench.request import Sequence, Status
from workbench.scheduler.policy import POLICIES, GuardedPolicy, fcfs, get_policy, policy_name


def queue(lengths: list[int]) -> list[Sequence]:
    return [make_sequence(i, [0] * n, 1, priority=-n) for i, n in enumerate(lengths)]


def ids(sequences: list[Sequence]) -> list[int]:
    return [sequence.sequence_id for sequence in sequences]


def guarded(policy) -> tuple[GuardedPolicy, list[tuple[str, str]]]:
    failures: list[tuple[str, str]] = []
    return GuardedPolicy(policy, lambda name, trace: failures.append((name, trace))), failures


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
