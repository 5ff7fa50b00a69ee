"""Drafts: what is a tree, what is refused, and by which words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.draft import Draft, DraftError


@st.composite
def trees(draw: st.DrawFn) -> Draft:
    size = draw(st.integers(0, 40))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    return Draft(tuple(range(size)), tuple(parents))


@given(trees())
def test_masks_and_depths_say_the_same(draft: Draft) -> None:
    """A token sees itself, its ancestors and the root: depth + 1 bits, all of earlier tokens."""
    seen = draft.ancestors()
    assert seen[0] == 1
    for node in range(len(draft)):
        bits = seen[node + 1]
        assert bits.bit_count() == draft.depths[node] + 1
        assert bits >> (node + 1) == 1
        expected = {0, *(i + 1 for i in draft.path(node))}
        assert {i for i in range(len(draft) + 1) if bits >> i & 1} == expected
    assert draft.depth == max(draft.depths, default=0)
    assert draft.is_chain == (list(draft.parents) == list(range(-1, len(draft) - 1)))
    flat = sorted(node for below in draft.children() for node in below)
    assert flat == list(range(len(draft)))


@given(trees(), st.integers(0, 45))
def test_the_first_nodes_are_a_draft(draft: Draft, count: int) -> None:
    part = draft.first(count)
    assert part.parents == draft.parents[:count]
    assert part.depths == draft.depths[:count]


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ((1, 2), (1, -1), "does not come before it"),
        ((1, 2), (0, 1), "does not come before it"),
        ((1, 2, 3), (-1, -2, 0), "does not come before it"),
        ((1, 2), (-1,), "of 2 tokens"),
        ((4, 4), (-1, -1), "twice below node -1"),
        ((4, 5, 5), (-1, 0, 0), "twice below node 0"),
        ((1.5,), (-1,), "more than whole numbers"),
        (("a",), (-1,), "no list of whole numbers"),
        ((True,), (-1,), "more than whole numbers"),
    ],
)
def test_what_is_no_tree_is_refused(tokens: tuple, parents: tuple, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        Draft(tokens, parents)


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (Draft((1, 10)), "outside the vocabulary of 10"),
        (Draft((-1,)), "outside the vocabulary"),
        (Draft((1, 2, 3, 4)), "Draft.depth=4: the sequence has room for 3"),
        (Draft(tuple(range(9)), (-1,) * 9), "Draft.tokens=9: the sequence has room for 8"),
        (Draft((1,), (), torch.ones(3)), "of 1 tokens of a vocabulary of 10"),
        (Draft((1,), (), torch.full((1, 10), torch.nan)), "NaN"),
        (Draft((1,), (), torch.full((1, 10), torch.inf)), "infinite"),
        (Draft((1,), (), torch.full((1, 10), 0.2)), "does not sum to 1"),
        (Draft((1,), (), torch.eye(10)[:1]), "nothing, so it was not drawn"),
    ],
)
def test_what_does_not_fit_is_refused(draft: Draft, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        draft.check(10, 8, 3)


def test_what_fits_passes() -> None:
    Draft((1, 1, 2), (-1, 0, 0), torch.full((3, 10), 0.1)).check(10, 3, 2)
    Draft(()).check(10, 0, 0)
    Draft((1, 2), (), torch.tensor([0.5, 0.1])).check(10, 2, 2)
