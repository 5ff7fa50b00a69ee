"""`Branches`: `n` and `best_of`, independent draws from one prompt that is computed once.

The first sequence computes the prompt; the others are forked from it then, share its full blocks,
and compute the prompt's last token again, each to draw its own first token with its own seed.
"""

from __future__ import annotations

from typing import Any

from workbench.engine.requests import Branching, RequestRecord
from workbench.request import Sequence


class Branches:
    """`num_made` sequences of which the `num_returned` likeliest are the outputs.

    The likeliest has the largest sum of log-probabilities, and one that failed goes last; while any
    runs, and where all are returned, they stand in order of branch.
    """

    def __init__(self, num_made: int, num_returned: int) -> None:
        self.num_made, self.num_returned = num_made, num_returned
        self.settled = False
        self.num_tokens = 0  # that all of them share

    def begin(self, first: Sequence) -> None:
        """Note how many tokens there are to share."""
        self.num_tokens = first.num_tokens

    def advance(self, record: RequestRecord, engine: Branching) -> list[Sequence]:
        """Fork once the shared tokens are computed. If they never are, because the first sequence
        was refused or its time was up, all have ended as it did."""
        first = record.sequences[0]
        computed = first.num_computed >= self.num_tokens
        if not (computed or first.finished):
            return []
        others = [engine.branch(record, first, self.num_tokens) for _ in range(1, self.num_made)]
        self.settled = True
        if computed:
            return []
        for other in others:
            engine.finish_like(other, first)
        return others

    def selected(self, record: RequestRecord) -> list[Sequence]:
        """Return the outputs, likeliest first once all have ended."""
        if self.num_made == self.num_returned:
            return record.sequences
        if not record.finished:
            return record.sequences[: self.num_returned]
        ranked = sorted(record.sequences, key=_likeliness, reverse=True)
        return ranked[: self.num_returned]

    def pack(self, places: dict[int, int]) -> dict[str, Any]:
        """Return its state as plain data."""
        return {"settled": self.settled, "num_tokens": self.num_tokens}

    def unpack(self, data: dict[str, Any], sequences: list[Sequence]) -> None:
        """Take the state of `pack` on."""
        self.settled, self.num_tokens = data["settled"], data["num_tokens"]


def _likeliness(sequence: Sequence) -> tuple[bool, float]:
    """Return what branches are ranked by: one that failed, and so stopped early, goes last."""
    return sequence.error is None, sum(entry.logprob for entry in sequence.logprobs or ())
