"""Verified drafts, read from a `RunLog`'s columns, and how often each position was accepted.

For the tables, the words and the still picture of `SpeculationTree`; the browser reads the columns
by itself (js/draft_tree.js).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workbench.views.lane import Lane
from workbench.views.run_log import RunLog


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft and its verdict. parents: places in it, -1 at the root; probabilities: the
    proposer's, NaN where it has none; path: the accepted nodes; bonus: the token added after it."""

    step: int
    lane: Lane
    proposer: str
    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    probabilities: tuple[float, ...]
    path: tuple[int, ...]
    bonus: int

    @property
    def depths(self) -> list[int]:
        """Of each node, how many it is from the root, itself included."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def depth(self) -> int:
        """Tokens on the longest path."""
        return max(self.depths, default=0)


def drafts_of(run: RunLog) -> Iterator[Draft]:
    """Yield the drafts of a run in order."""
    columns, first = run.columns, 0
    for place, count in enumerate(columns["draft_nodes"]):
        nodes = slice(first, first + count)
        accepted = columns["node_accepted"][nodes]
        yield Draft(
            columns["step_number"][columns["draft_column"][place]],
            run.lanes[columns["draft_lane"][place]],
            run.lists["proposers"][columns["draft_proposer"][place]],
            tuple(columns["node_token"][nodes]),
            tuple(columns["node_parent"][nodes]),
            tuple(columns["node_probability"][nodes]),
            tuple(node for node, yes in enumerate(accepted) if yes),
            columns["draft_bonus"][place],
        )
        first += count


def acceptance(drafts: Iterable[Draft]) -> list[tuple[int, int]]:
    """Return, for each draft position from 1, how many drafts are that deep, and how many of them
    were accepted there."""
    tried: list[int] = []
    accepted: list[int] = []
    for draft in drafts:
        missing = draft.depth - len(tried)
        tried += [0] * missing
        accepted += [0] * missing
        for position in range(draft.depth):
            tried[position] += 1
            accepted[position] += position < len(draft.path)
    return list(zip(tried, accepted, strict=True))
