"""Which row of a head's cache holds which sequence, and how far: what head proposers share.

A row follows its sequence by the states that the engine hands over. Where these begin later than
the row ends (a prefix was found in the cache, the engine was restored), the row begins anew there:
the head then sees less of the past, and drafts worse, never wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.draft import Draft
from workbench.request import Sequence
from workbench.sample.following import TAIL
from workbench.speculation.heads.cache import HeadCache
from workbench.speculation.heads.tree import DraftTree
from workbench.speculation.proposer import Candidate
from workbench.speculation.states import States, packed


@dataclass(slots=True)
class Row:
    """A sequence's row: the positions `start` to `stop` of its tokens have their states in it.

    tokens: the sequence's tokens at start + 1 to stop, which tell whether it is still the same.
    kept: what the head said last, where it is to be asked again without anything new.
    """

    number: int
    start: int = 0
    tokens: list[int] = field(default_factory=list)
    kept: Tensor | None = None

    @property
    def stop(self) -> int:
        """The position after the last whose state is in."""
        return self.start + len(self.tokens)


class News(NamedTuple):
    """What a candidate's row is to be given before it can be drafted for.

    place: the candidate's. token_ids [n] are those one after the positions of states; None where
    there is nothing new.
    """

    place: int
    row: Row
    token_ids: list[int]
    states: States | None

    def parted(self, at: int) -> tuple[News, News]:
        """Return the first `at` pairs, and the rest."""
        states = self.states
        assert states is not None, "there are pairs"
        middle = states.start + at
        before = self._replace(
            token_ids=self.token_ids[:at], states=states.part(states.start, middle)
        )
        rest = states.part(middle, states.stop)
        return before, self._replace(token_ids=self.token_ids[at:], states=rest)


def packed_states(news: Tokens[News], points: Tokens[str]) -> Tensor:
    """Return the states of all, one after the other, their points side by side: [T, width]."""
    return packed([item.states for item in news if item.states is not None], points)


class HeadRows:
    """Rows by sequence. Rows of sequences that have ended are used again."""

    def __init__(self, needs: Tokens[str], cache: HeadCache | None = None) -> None:
        self.needs, self.cache = tuple(needs), cache
        self._rows: dict[int, tuple[Row, Sequence]] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        """Sequences with a row."""
        return len(self._rows)

    @property
    def unused(self) -> int:
        """A row that no sequence has now."""
        return len(self._rows) + len(self._free)

    def update(self, candidates: Tokens[Candidate]) -> list[News]:
        """Return what is new of each candidate that can be drafted for, its row cut to fit.

        A candidate whose latest states are missing is left out.
        """
        self._release()
        found = (self._news(place, candidate) for place, candidate in enumerate(candidates))
        return [news for news in found if news is not None]

    def took(self, news: News, kept: Tensor | None) -> None:
        """Note that a row holds its news now, and what the head said of the last (None: gone)."""
        news.row.tokens += news.token_ids
        news.row.kept = kept

    def _release(self) -> None:
        for number in [n for n, (_, s) in self._rows.items() if s.finished]:
            row, _ = self._rows.pop(number)
            self._free.append(row.number)

    def _news(self, place: int, candidate: Candidate) -> News | None:
        sequence, ids = candidate.sequence, candidate.token_ids
        row, known = self._rows.get(sequence.sequence_id) or (Row(self._number()), None)
        self._rows[sequence.sequence_id] = row, sequence
        end = len(ids) - 1  # the last token has no state yet
        if self.cache is not None and self.cache.lens[row.number] > len(row.tokens):
            self.cache.truncate(row.number, len(row.tokens))  # an interrupt came before `took`
        same = _common(row.tokens, ids, row.start + 1, trusted=sequence is known)
        if same < len(row.tokens) or row.stop > end:
            self._cut(row, min(same, max(0, end - row.start)))
        if candidate.states is None:
            return None if row.kept is None or row.stop < end else News(place, row, [], None)
        begin, states = candidate.states.start, candidate.states
        if begin > row.stop or not row.tokens:
            self._cut(row, 0)
            row.start = begin
        if states.stop < end:
            return None
        return News(place, row, ids[row.stop + 1 : end + 1], states.part(row.stop, end))

    def _number(self) -> int:
        number = self._free.pop() if self._free else len(self._rows)
        if self.cache is not None:
            self.cache.reserve_rows(number + 1)
            self.cache.truncate(number, 0)
        return number

    def _cut(self, row: Row, length: int) -> None:
        del row.tokens[length:]
        row.kept = None
        if self.cache is not None:
            self.cache.truncate(row.number, length)


def chains_of(tree: DraftTree, candidates: Tokens[Candidate], name: str) -> list[Draft | None]:
    """Return a tree of one path for each candidate as chains within their bounds."""
    scores = tree.scores.double().cpu()
    own = torch.diff(scores, dim=1, prepend=scores.new_zeros(len(scores), 1)).exp()
    drafts: list[Draft | None] = []
    for candidate, ids, sure in zip(candidates, tree.token_ids.tolist(), own.unbind(), strict=True):
        whole = Draft(tuple(ids), (), sure, name)
        drafts.append(whole.first(min(candidate.max_depth, candidate.max_tokens)))
    return drafts


def drafts_of(tree: DraftTree, candidates: Tokens[Candidate], name: str) -> list[Draft | None]:
    """Return a tree's rows as drafts within the candidates' bounds."""
    scores = tree.scores.double().cpu()
    parents = tree.parents.cpu().expand(scores.shape)
    above = scores.gather(1, parents.clamp(min=0)).where(parents >= 0, 0.0)
    own = (scores - above).exp().unbind()
    rows = zip(candidates, tree.token_ids.tolist(), parents.tolist(), own, scores, strict=True)
    return [
        _within(candidate, Draft(tuple(ids), tuple(before), sure, name), row)
        for candidate, ids, before, sure, row in rows
    ]


def _within(candidate: Candidate, whole: Draft, scores: Tensor) -> Draft | None:
    """Return the nodes that are not too deep, the likeliest of them where there are too many.

    No child scores more than its parent and the sort is stable, so parents stay with children.
    """
    if len(whole) <= candidate.max_tokens and whole.depth <= candidate.max_depth:
        return whole
    order = scores.argsort(descending=True, stable=True).tolist()
    fitting = [node for node in order if whole.depths[node] <= candidate.max_depth]
    kept = sorted(fitting[: candidate.max_tokens])
    if not kept:
        return None
    places = {-1: -1} | {node: place for place, node in enumerate(kept)}
    assert whole.probabilities is not None, "made with them"
    chosen = tuple(whole.token_ids[node] for node in kept)
    parents = tuple(places[whole.parents[node]] for node in kept)
    return Draft(chosen, parents, whole.probabilities[kept], whole.proposer)


def _common(ours: list[int], ids: list[int], begin: int, *, trusted: bool) -> int:
    """Return how many of our tokens are those from `begin` on.

    trusted: the list is the one that was followed before. Such a list is only appended to, so its
    latest tokens tell of all.
    """
    end = begin + len(ours)
    first = max(0, len(ours) - TAIL) if trusted else 0
    if ids[begin + first : end] == ours[first:]:
        return len(ours)
    pairs = enumerate(zip(ours, ids[begin:end], strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(ids) - begin))
