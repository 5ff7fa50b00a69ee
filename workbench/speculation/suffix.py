"""`SuffixAutomaton`: the longest suffix that occurred before, and what mostly followed it.

Per request, over prompt and output; with a pool, over what other requests have produced as well
(suffix decoding, Oliaro et al. 2024, with the automaton of Blumer et al. 1985 in place of a tree).
The pool is off by default, since through it one request's text shows in another's speed.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from workbench.config import require_positive
from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.sample.following import Following
from workbench.speculation.proposer import Candidate, ProposalContext

# A token is counted in so many states, those of the longest strings that it ends: in text of one
# token over and over it ends as many as there are tokens.
_COUNTED = 32


class SuffixAutomaton(Described):
    """Proposes what most often followed the longest matched suffix.

    The draft has up to `max_draft` tokens, but at most `factor` times as many as have matched, and
    ends where the next token was right in less than `min_share` of the cases. pool: how many ended
    requests to remember for the others, of the same namespace alone (0: none).
    """

    name = "suffix automaton"
    needs: tuple[str, ...] = ()

    def __init__(
        self,
        max_draft: int = 8,
        *,
        factor: float = 1.0,
        min_share: float = 0.1,
        min_match: int = 1,
        pool: int = 0,
    ) -> None:
        """Raise `ConfigError` for numbers that mean nothing."""
        for name, value in (("max_draft", max_draft), ("min_match", min_match)):
            require_positive(f"SuffixAutomaton.{name}", value)
        if not factor > 0 or not 0 <= min_share <= 1:
            fix = "factor is above 0, min_share from 0 to 1."
            raise ConfigError("SuffixAutomaton", (factor, min_share), "are out of range", fix)
        if pool != 0:
            require_positive("SuffixAutomaton.pool", pool)
        self.max_draft, self.factor, self.min_share = max_draft, factor, min_share
        self.min_match, self.pool = min_match, pool
        self._own: dict[int, tuple[Any, _Automaton]] = {}
        self._pools: dict[str, deque[list[int]]] = {}
        self._pooled: dict[str, _Automaton] = {}

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return a chain for every candidate whose end occurred before."""
        for number, (sequence, _) in list(self._own.items()):
            if sequence.finished:
                del self._own[number]
                self._remember(sequence)
        return [self._draft(candidate) for candidate in context.candidates]

    def _draft(self, candidate: Candidate) -> Draft | None:
        sequence = candidate.sequence
        entry = self._own.get(sequence.sequence_id)
        if entry is None or entry[0] is not sequence:
            entry = self._own[sequence.sequence_id] = sequence, _Automaton()
        own = entry[1]
        own.follow(candidate.token_ids)
        length, state = own.last_match()
        source = own
        pooled = self._pooled.get(sequence.request.namespace)
        if pooled is not None:
            other = pooled.match(candidate.token_ids)
            if other[0] > length:
                (length, state), source = other, pooled
        if length < self.min_match:
            return None
        bound = min(self.max_draft, candidate.max_tokens, candidate.max_depth)
        tokens, shares = source.walk(state, min(bound, int(length * self.factor)), self.min_share)
        if not tokens:
            return None
        return Draft(tuple(tokens), (), torch.tensor(shares), self.name)

    def _remember(self, sequence: Any) -> None:
        if not self.pool or sequence.error is not None:
            return
        namespace = sequence.request.namespace
        texts = self._pools.setdefault(namespace, deque(maxlen=self.pool))
        texts.append(list(sequence.token_ids))
        pooled = self._pooled[namespace] = _Automaton()
        for text in texts:
            pooled.add(text)

    def describe(self) -> dict[str, Any]:
        """Return the bounds."""
        shared = f"{self.pool} ended requests" if self.pool else "off"
        return {"draft": self.max_draft, "factor": self.factor, "pool": shared}


class _Automaton(Following):
    """The suffix automaton of a token list, with how often each state was passed.

    State 0 is the start. `_next[s]`: transitions; `_link[s]`: the longest proper suffix that is a
    state of its own; `_length[s]`: tokens of the state's longest string; `_count[s]`: occurrences.
    """

    def __init__(self) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._next: list[dict[int, int]] = [{}]
        self._link, self._longest, self._count = [-1], [0], [0]
        self._last = 0

    def extend(self, token_ids: list[int], start: int) -> None:
        """Add the tokens from `start` on."""
        for token_id in token_ids[start:]:
            self._append(token_id)

    def add(self, token_ids: list[int]) -> None:
        """Add a text of its own: nothing matches across its beginning."""
        self._last = 0
        for token_id in token_ids:
            self._append(token_id)

    def _append(self, token_id: int) -> None:
        last, follow, link, longest = self._last, self._next, self._link, self._longest
        known = follow[last].get(token_id)
        if known is not None and longest[known] == longest[last] + 1:
            state = known  # a later text of a pool that begins as an earlier one does
        elif known is not None:
            state = self._split(last, token_id, known)
        else:
            state = self._new({}, 0, longest[last] + 1)
            place = last
            while place >= 0 and token_id not in follow[place]:
                follow[place][token_id] = state
                place = link[place]
            if place >= 0:
                target = follow[place][token_id]
                whole = longest[target] == longest[place] + 1
                link[state] = target if whole else self._split(place, token_id, target)
        self._last = place = state
        for _ in range(_COUNTED):
            if place <= 0:
                break
            self._count[place] += 1
            place = link[place]

    def _new(self, transitions: dict[int, int], link: int, longest: int) -> int:
        self._next.append(transitions)
        self._link.append(link)
        self._longest.append(longest)
        self._count.append(0)
        return len(self._link) - 1

    def _split(self, place: int, token_id: int, target: int) -> int:
        """Give the shorter strings of a state one of their own; return it."""
        clone = self._new(dict(self._next[target]), self._link[target], self._longest[place] + 1)
        self._count[clone] = self._count[target]
        self._link[target] = clone
        while place >= 0 and self._next[place].get(token_id) == target:
            self._next[place][token_id] = clone
            place = self._link[place]
        return clone

    def last_match(self) -> tuple[int, int]:
        """Return the longest suffix that also occurs before: its length, and its state."""
        state = self._link[self._last] if self._last else 0
        return self._longest[state], state

    def match(self, token_ids: list[int], longest: int = 64) -> tuple[int, int]:
        """Return the longest suffix of a list, of its last tokens, that occurs here."""
        state = length = 0
        for token_id in token_ids[-longest:]:
            while state and token_id not in self._next[state]:
                state = self._link[state]
                length = self._longest[state]
            if token_id in self._next[state]:
                state, length = self._next[state][token_id], length + 1
            else:
                state = length = 0
        return length, state

    def walk(self, state: int, length: int, min_share: float) -> tuple[list[int], list[float]]:
        """Return what mostly followed a state: tokens, and in which share of the cases each did."""
        tokens: list[int] = []
        shares: list[float] = []
        while len(tokens) < length and self._next[state]:
            counts = [(self._count[s], -token, s) for token, s in self._next[state].items()]
            best, negative, following = max(counts)
            share = best / sum(count for count, _, _ in counts)
            if share < min_share:
                break
            tokens.append(-negative)
            shares.append(share)
            state = following
        return tokens, shares
