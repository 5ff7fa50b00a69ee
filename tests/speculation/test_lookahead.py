"""Lookahead: its window is a Jacobi iteration, and the n-grams that it finds are verified."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.speculation import Candidate, Lookahead, Verified
from workbench.speculation.proposer import ProposalContext


def sequence_of(token_ids: list[int]) -> Any:
    """Return as much of a sequence as a proposer looks at."""
    return SimpleNamespace(
        sequence_id=1, seed=3, token_ids=token_ids, num_output_tokens=len(token_ids)
    )


def successor(token_id: int) -> int:
    """A target whose next token follows from the last alone."""
    return (7 * token_id + 3) % 31


def follow(draft: Draft, last: int) -> Verified:
    """Return what that target says of a draft, and which nodes are right."""
    said = (successor(last), *(successor(token) for token in draft.token_ids))
    nodes: list[int] = []
    while True:
        place = nodes[-1] if nodes else -1
        right = [
            node
            for node, (parent, token) in enumerate(zip(draft.parents, draft.token_ids, strict=True))
            if parent == place and token == said[place + 1]
        ]
        if not right:
            return Verified(draft, said, tuple(nodes))
        nodes.append(right[0])


def run(proposer: Lookahead, steps: int, *, cut: int = 100, max_depth: int = 32) -> list[Verified]:
    """Decode by that target; drafts are cut to `cut` nodes before they are verified."""
    sequence, verified, found = sequence_of([5, 9, 2]), None, []
    for _ in range(steps):
        candidate = Candidate(sequence, 64, max_depth, None, verified)
        context = ProposalContext(1, (candidate,), None, None)  # type: ignore[arg-type]
        [draft] = proposer.propose(context)
        assert draft is not None
        draft.check(31, 64, max_depth)
        verified = follow(draft.first(cut), sequence.token_ids[-1])
        found.append(verified)
        sequence.token_ids += [draft.token_ids[node] for node in verified.nodes]
        sequence.token_ids.append(successor(sequence.token_ids[-1]))
        sequence.num_output_tokens = len(sequence.token_ids)
    assert all(b == successor(a) for a, b in pairwise(sequence.token_ids[2:]))
    return found


def test_n_grams_of_the_window_are_accepted_once_the_text_comes_to_them() -> None:
    """The target goes in a circle: after one round every n-gram is known."""
    found = run(Lookahead(5, n=4, guesses=5), 60)
    assert all(len(verified.nodes) >= 3 for verified in found[20:])
    assert len(found[0].nodes) == 0


def test_the_window_is_one_jacobi_iteration_a_step() -> None:
    """Each level is what the target said of the level before, column by column."""
    proposer = Lookahead(3, n=4, guesses=1)
    run(proposer, 1)
    first = [list(level) for level in proposer._traces[1].levels]
    proposer = Lookahead(3, n=4, guesses=1)
    run(proposer, 2)
    assert proposer._traces[1].levels == [first[0], [successor(token) for token in first[0]]]


@given(st.integers(1, 6), st.integers(2, 5), st.integers(1, 6), st.integers(0, 40))
def test_sizes_and_cuts(window: int, n: int, guesses: int, cut: int) -> None:
    """Drafts stay within bounds, and a cut one costs guesses and nothing else."""
    found = run(Lookahead(window, n=n, guesses=guesses), 12, cut=cut, max_depth=5)
    largest = (n - 1) * (window + guesses)
    assert all(len(verified.draft) <= min(cut, largest) for verified in found)


@pytest.mark.parametrize("settings", [{"window": 0}, {"n": 1}, {"guesses": -2}])
def test_sizes_that_mean_nothing_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="Lookahead"):
        Lookahead(**settings)
