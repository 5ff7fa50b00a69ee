"""States that are slices of one gather are those that were cut one by one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.speculation.states import RowSlices, States, StateStore, packed

POINTS = ("a", "b")


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    cuts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=6, max_size=6),
    copied=st.lists(st.booleans(), min_size=6, max_size=6),
    reverse=st.booleans(),
)
def test_parts_are_packed_as_they_are_by_hand(
    counts: list[int], cuts: list[tuple[int, int]], copied: list[bool], reverse: bool
) -> None:
    total = sum(counts)
    whole = {"a": torch.arange(total).view(-1, 1), "b": -torch.arange(2 * total).view(-1, 2)}
    parts, wanted, begin = [], [], 0
    for count, (front, back), copy in zip(counts, cuts, copied, strict=False):
        rows = RowSlices(whole, begin, begin + count)
        one = States(10, dict(rows) if copy else rows)
        assert one.stop == 10 + count
        first = min(front, count - 1)
        last = max(first + 1, count - back)
        part = one.part(10 + first, 10 + last)
        assert (part.start, part.stop) == (10 + first, 10 + last)
        parts.append(part)
        span = slice(begin + first, begin + last)
        wanted.append(torch.cat([whole[point][span] for point in POINTS], -1))
        begin += count
    if reverse:
        parts, wanted = parts[::-1], wanted[::-1]
    assert torch.equal(packed(parts, POINTS), torch.cat(wanted))
    assert torch.equal(packed(parts, POINTS[1:]), torch.cat(wanted)[:, 1:])


def test_a_store_joins_what_follows_and_drops_what_does_not() -> None:
    store, rows = StateStore(), torch.arange(6).view(-1, 1)
    store.add(1, States(3, RowSlices({"a": rows}, 0, 2)))
    store.add(1, States(5, RowSlices({"a": rows}, 2, 3)))
    found = store.take(1)
    assert found is not None
    assert (found.start, found.stop) == (3, 6)
    assert found.rows["a"].tolist() == [[0], [1], [2]]
    store.add(1, States(3, RowSlices({"a": rows}, 0, 2)))
    store.add(1, States(7, RowSlices({"a": rows}, 4, 6)))
    found = store.take(1)
    assert found is not None
    assert found.start == 7
    assert store.take(1) is None
