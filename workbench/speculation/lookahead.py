"""`Lookahead`: n-grams that the target itself makes in its spare rows (Fu et al. 2024).

No drafter: beside what it verifies, each pass runs a window of guesses at the coming positions, one
Jacobi iteration a step. What the target says of `n - 1` iterations in a row is an n-gram, kept by
its first token; those that begin with the text's last token are what the next pass verifies.

Window and n-grams are one tree. Guess (level l, column j) stands behind the guesses (0, 0 … j), the
latest trajectory, and (1 … l - 1, j), its own column's earlier iterations.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.config import require_positive
from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.request import Sequence
from workbench.speculation.chance import hashed
from workbench.speculation.proposer import Candidate, ProposalContext
from workbench.speculation.windows import check_window

if TYPE_CHECKING:
    from workbench.cache import KVCache
    from workbench.models import DecoderLM

_KEPT = 64  # n-grams of one first token


class Lookahead(Described):
    """Proposes up to `guesses` n-grams that begin with the last token, and a window of so many
    columns and n - 1 levels whose outputs become n-grams. Per request: nothing is shared."""

    name = "lookahead"
    needs: tuple[str, ...] = ()

    def __init__(self, window: int = 5, *, n: int = 4, guesses: int = 5) -> None:
        """Raise `ConfigError` unless all are whole numbers from 1, and n is 2 or more."""
        for name, value in (("window", window), ("n", n), ("guesses", guesses)):
            require_positive(f"Lookahead.{name}", value)
        if n < 2:
            raise ConfigError("Lookahead.n", n, "is no n-gram to go on with", "Use 2 or more.")
        self.window, self.n, self.guesses = window, n, guesses
        self._traces: dict[int, _Trace] = {}

    def bind(self, model: DecoderLM, cache: KVCache) -> None:
        """Raise `ConfigError` where layers have a window: a window of guesses is a tree."""
        check_window(self.name, cache, is_chain=False)

    def close(self) -> None:
        """Forget every sequence."""
        self._traces.clear()

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return n-grams and window of every candidate."""
        self._traces = {
            candidate.sequence.sequence_id: self._trace(candidate)
            for candidate in context.candidates
        }
        return [self._draft(candidate) for candidate in context.candidates]

    def _trace(self, candidate: Candidate) -> _Trace:
        trace = self._traces.get(candidate.sequence.sequence_id)
        if trace is None or trace.sequence is not candidate.sequence:
            trace = _Trace(candidate.sequence)
        return trace

    def _draft(self, candidate: Candidate) -> Draft | None:
        trace = self._traces[candidate.sequence.sequence_id]
        seed = hashed(candidate.sequence.seed, candidate.sequence.num_output_tokens)
        source = random.Random(seed)
        if not trace.levels:
            trace.levels = [source.choices(candidate.token_ids, k=self.window)]
            trace.ages = [0] * self.window
        elif candidate.verified is not None:
            trace.take_in(candidate, self.n, source)
        tree = _Tree(candidate.max_tokens, candidate.max_depth)
        for ngram in trace.ngrams.get(candidate.token_ids[-1], [])[-self.guesses :]:
            tree.add_path(ngram)
        trace.places = tree.add_window(trace.levels)
        if not tree.token_ids:
            return None
        return Draft(tuple(tree.token_ids), tuple(tree.parents), proposer=self.name)

    def describe(self) -> dict[str, Any]:
        """Return the sizes."""
        size = f"{self.window} columns, {self.n - 1} levels"
        return {"window": size, "n-grams": f"{self.guesses} of {self.n} tokens at once"}


@dataclass(slots=True)
class _Trace:
    """What is kept of a sequence.

    levels[l][j]: the window, oldest iteration first. ages[j]: how many of a column's latest levels
    are what the target said of the one before. places: where its guesses are in the draft proposed
    last. ngrams: by first token, what followed it, the latest last.
    """

    sequence: Sequence
    levels: list[list[int]] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    places: dict[tuple[int, int], int] = field(default_factory=dict)
    ngrams: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)

    def take_in(self, candidate: Candidate, n: int, source: random.Random) -> None:
        """Move the window on by what the target said of it."""
        verified = candidate.verified
        assert verified is not None, "asked before"
        said, top = verified.token_ids, len(self.levels) - 1
        new = []
        for column in range(len(self.levels[0])):
            place = self.places.get((top, column))
            if place is None or place + 1 >= len(said):  # cut: guessed anew
                new.append(source.choice(candidate.token_ids))
                self.ages[column] = 0
            else:
                new.append(said[place + 1])
                self.ages[column] += 1
                if self.ages[column] >= n - 1:
                    first, *rest = [level[column] for level in self.levels[1 - n :]]
                    self._keep(first, (*rest, new[column]))
        self.levels = [*self.levels, new][1 - n :]
        ahead = min(len(verified.nodes), len(new))  # the text went on by so many guesses more
        for level in self.levels:
            level[:] = level[ahead:] + source.choices(candidate.token_ids, k=ahead)
        self.ages = self.ages[ahead:] + [0] * ahead

    def _keep(self, first: int, rest: tuple[int, ...]) -> None:
        known = self.ngrams.setdefault(first, [])
        if rest in known:
            known.remove(rest)
        known.append(rest)
        del known[:-_KEPT]


class _Tree:
    """Nodes of a draft within bounds; a token stands once behind a node."""

    def __init__(self, max_tokens: int, max_depth: int) -> None:
        self.max_tokens, self.max_depth = max_tokens, max_depth
        self.token_ids: list[int] = []
        self.parents: list[int] = []
        self._nodes: dict[tuple[int, int], int] = {}
        self._depths: dict[int, int] = {-1: 0}

    def add(self, parent: int, token_id: int) -> int | None:
        """Return the node of a token behind `parent`; None where there is no room for it."""
        node = self._nodes.get((parent, token_id))
        if node is None:
            depth = self._depths[parent] + 1
            if len(self.token_ids) >= self.max_tokens or depth > self.max_depth:
                return None
            node = self._nodes[parent, token_id] = len(self.token_ids)
            self._depths[node] = depth
            self.token_ids.append(token_id)
            self.parents.append(parent)
        return node

    def add_path(self, token_ids: Tokens[int]) -> None:
        """Add tokens that follow one another."""
        parent: int | None = -1
        for token_id in token_ids:
            assert parent is not None, "it ends where there is no room"
            parent = self.add(parent, token_id)
            if parent is None:
                return

    def add_window(self, levels: list[list[int]]) -> dict[tuple[int, int], int]:
        """Add a window's guesses; return where those are that found room, by (level, column)."""
        places: dict[tuple[int, int], int] = {}
        last: int | None = -1
        for column, token_id in enumerate(levels[0]):
            last = None if last is None else self.add(last, token_id)
            node = last
            for level in range(len(levels)):
                if level and node is not None:
                    node = self.add(node, levels[level][column])
                if node is None:
                    break
                places[level, column] = node
        return places
