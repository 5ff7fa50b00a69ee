"""How prompts share a step's tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shadow import make_sequence

from workbench.scheduler.chunking import EqualProgress, FirstCome, Whole

LACKING = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("way", "lacking", "budget", "shares"),
    [
        (FirstCome(), [5, 9, 3], 10, [5, 5, 0]),
        (FirstCome(), [5, 9], 100, [5, 9]),
        (EqualProgress(), [5, 9, 3], 10, [4, 3, 3]),
        (EqualProgress(), [20, 2, 20], 10, [4, 2, 4]),
        (EqualProgress(), [20, 20, 20], 2, [1, 1, 0]),
        (EqualProgress(), [1, 1, 1], 2, [1, 1, 0]),
        (EqualProgress(), [5, 9], 100, [5, 9]),
        (Whole(), [5, 9, 3], 10, [5, 0, 3]),
        (Whole(), [12, 3], 10, [12, 0]),
    ],
)
def test_shares(way, lacking, budget, shares) -> None:
    assert way.share(lacking, budget) == shares


@pytest.mark.parametrize("way", [FirstCome(), EqualProgress()])
@given(lacking=LACKING, budget=st.integers(0, 100))
def test_nothing_is_wasted_or_exceeded(way, lacking, budget) -> None:
    shares = way.share(lacking, budget)
    assert all(0 <= share <= lack for share, lack in zip(shares, lacking, strict=True))
    assert sum(shares) == min(budget, sum(lacking))


@given(lacking=LACKING, budget=st.integers(0, 100))
def test_equal_means_equal(lacking, budget) -> None:
    """Whoever gets less than another by more than the odd token got all it lacks."""
    shares = EqualProgress().share(lacking, budget)
    for share, lack in zip(shares, lacking, strict=True):
        assert share == lack or share >= max(shares) - 1


def progress(make, step, **settings: object) -> list[list[int]]:
    scheduler, model = make(num_blocks=40, **settings)
    sequences = [make_sequence(i, [i] * 24, 2) for i in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    rows = []
    for _ in range(3):
        step(scheduler, model)
        rows.append([sequence.num_computed for sequence in sequences])
    while scheduler.num_unfinished:
        step(scheduler, model)
    return rows


def test_first_come_and_equal_progress(make, step) -> None:
    first = progress(make, step, max_batch_tokens=12)
    equal = progress(make, step, max_batch_tokens=12, chunking="equal_progress")
    assert first == [[12, 0, 0], [24, 0, 0], [25, 11, 0]]
    assert equal == [[4, 4, 4], [8, 8, 8], [12, 12, 12]]


def test_the_share_of_prompts_is_bounded(make, step) -> None:
    scheduler, model = make(num_blocks=40, max_batch_tokens=64, max_prefill_tokens=5)
    for i in range(3):
        scheduler.add(make_sequence(i, [i] * 12, 9))
    while scheduler.num_unfinished:
        plan = step(scheduler, model)
        assert plan.num_tokens - plan.num_decodes <= 5
