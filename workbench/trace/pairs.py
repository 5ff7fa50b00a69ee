"""`Pair`: one output in two runs, and where they part.

Made by `Comparison` of two traces' outputs; `comparison_figure` draws them. The margin says whether
a divergence was a tie that rounding turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from workbench.trace.tokens import SequenceLog, TokenFact


class Divergence(NamedTuple):
    """Where two outputs first differ; a token is None where that output has ended.

    margin: log-probability of the likeliest token less that of the second, as each run saw it
    (None where it was not noted): a small one is a tie that rounding may turn.
    """

    position: int
    token_a: TokenFact | None
    token_b: TokenFact | None

    @property
    def margin_a(self) -> float | None:
        """The first run's margin."""
        return margin(self.token_a)

    @property
    def margin_b(self) -> float | None:
        """The second run's margin."""
        return margin(self.token_b)


def margin(token: TokenFact | None) -> float | None:
    """Return how far the likeliest token was ahead of the second; None where that is not known."""
    if token is None or len(token.top) < 2:
        return None
    best, second = sorted((value for _, value in token.top), reverse=True)[:2]
    return best - second


@dataclass(frozen=True, slots=True)
class Pair:
    """One output in both runs. max_logprob_gap: the largest difference of the log-probabilities of
    the tokens before the divergence; None where they were not noted."""

    request_id: str
    branch: int
    a: SequenceLog
    b: SequenceLog
    divergence: Divergence | None
    max_logprob_gap: float | None

    @classmethod
    def of(cls, a: SequenceLog, b: SequenceLog) -> Pair:
        """Compare two outputs."""
        both = zip(a.token_ids, b.token_ids, strict=False)
        same = next((i for i, (one, other) in enumerate(both) if one != other), None)
        if same is None:
            same = min(len(a.tokens), len(b.tokens))
        divergence = None
        if same < max(len(a.tokens), len(b.tokens)):
            here = [log.tokens[same] if same < len(log.tokens) else None for log in (a, b)]
            divergence = Divergence(same, *here)
        gaps = [
            abs(one.logprob - other.logprob)
            for one, other in zip(a.tokens[:same], b.tokens[:same], strict=True)
            if one.logprob is not None and other.logprob is not None
        ]
        gap = max(gaps, default=None)
        return cls(a.request_id, a.branch, a, b, divergence, gap)
