"""`NGram`: what followed the last few tokens when they stood in the text before (prompt lookup).

Saxena 2023, "Prompt lookup decoding". No weights, nothing learned: pays where the output repeats
the prompt or itself, as in edits, summaries and code.
"""

from __future__ import annotations

from typing import Any

from workbench.config import require_positive
from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.sample.following import Following
from workbench.speculation.proposer import Candidate, ProposalContext


class NGram(Described):
    """Proposes up to `max_draft` tokens that followed the latest earlier occurrence of the last
    max_n, … min_n tokens, the longest first."""

    name = "ngram"
    needs: tuple[str, ...] = ()

    def __init__(self, max_draft: int = 5, *, max_n: int = 4, min_n: int = 1) -> None:
        """Raise `ConfigError` unless all are whole numbers from 1, and min_n at most max_n."""
        for name, value in (("max_draft", max_draft), ("max_n", max_n), ("min_n", min_n)):
            require_positive(f"NGram.{name}", value)
        if min_n > max_n:
            raise ConfigError("NGram.min_n", min_n, f"above max_n={max_n}", "Lower it.")
        self.max_draft, self.max_n, self.min_n = max_draft, max_n, min_n
        self._indices: dict[int, _Index] = {}

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return what followed before, for each candidate; None where nothing did."""
        # Built anew for who comes back: an index is only a memory of its tokens.
        self._indices = {
            c.sequence.sequence_id: self._indices.get(c.sequence.sequence_id)
            or _Index(self.min_n, self.max_n)
            for c in context.candidates
        }
        return [self._draft(candidate) for candidate in context.candidates]

    def _draft(self, candidate: Candidate) -> Draft | None:
        token_ids = candidate.token_ids
        length = min(self.max_draft, candidate.max_tokens, candidate.max_depth)
        start = self._indices[candidate.sequence.sequence_id].find(token_ids)
        if start is None or length < 1:
            return None
        found = token_ids[start : start + length]
        while len(found) < length:  # an overlapping match: it goes on periodically
            found.append(found[len(found) - (len(token_ids) - start)])
        return Draft(tuple(found), proposer=self.name)

    def describe(self) -> dict[str, Any]:
        """Return the lengths."""
        return {"draft": self.max_draft, "matches": f"{self.min_n} to {self.max_n} tokens"}


class _Index(Following):
    """Where each n-gram of a token list last ended, and the time before."""

    def __init__(self, min_n: int, max_n: int) -> None:
        super().__init__()
        self.min_n, self.max_n = min_n, max_n
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._ends: dict[tuple[int, ...], int] = {}
        self._before: dict[tuple[int, ...], int] = {}

    def extend(self, token_ids: list[int], start: int) -> None:
        """Note the n-grams that end at `start` or later."""
        for end in range(start + 1, len(token_ids) + 1):
            for n in range(self.min_n, min(self.max_n, end) + 1):
                key = tuple(token_ids[end - n : end])
                if key in self._ends:
                    self._before[key] = self._ends[key]
                self._ends[key] = end

    def find(self, token_ids: list[int]) -> int | None:
        """Return the index of the token after the latest earlier occurrence of the list's end."""
        self.follow(token_ids)
        for n in range(min(self.max_n, len(token_ids) - 1), self.min_n - 1, -1):
            start = self._before.get(tuple(token_ids[len(token_ids) - n :]))
            if start is not None:
                return start
        return None
