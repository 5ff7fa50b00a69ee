"""`Draft`: tokens that somebody guesses a sequence will go on with, as a chain or a tree.

Made by proposers (`workbench.speculation`), put into the plan by the scheduler, turned to masks by
`workbench.run`, and decided on by the verifier. Token 0 … n - 1 are the tree's nodes; a parent
comes before its children, so the first nodes of a draft are a draft themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from workbench.describe import Described
from workbench.errors import InvalidValue

if TYPE_CHECKING:
    from torch import Tensor


class DraftError(InvalidValue):
    """A draft that cannot be verified: no tree, tokens out of range, too deep or too large."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Draft(Described):
    """n tokens to verify. parents[i]: the node before node i, -1 for the last committed token;
    left out, the tokens are a chain.

    probabilities: None; [n], how sure the proposer was of each token (shown, never used); or [n,
    V], the distributions that the tokens were drawn from, which makes verification exact for drawn
    drafts. Siblings have one distribution and were drawn from it without replacement, in order.
    depths[i]: how many draft tokens lead to node i, itself included. Raises `DraftError`.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...] = ()
    probabilities: Tensor | None = None
    proposer: str = ""
    depths: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Freeze what was given and refuse what is no tree."""
        tokens = _whole("token_ids", self.token_ids)
        given = self.parents is not None and len(self.parents) > 0
        parents = _whole("parents", self.parents) if given else _chain(len(tokens))
        if len(parents) != len(tokens):
            fix = "Give each token one parent, -1 for the last committed token."
            problem = f"of {len(tokens)} tokens"
            raise DraftError("Draft.parents", f"{len(parents)} of them", problem, fix)
        object.__setattr__(self, "token_ids", tokens)
        object.__setattr__(self, "parents", parents)
        object.__setattr__(self, "depths", _depths(parents))
        pairs = list(zip(parents, tokens, strict=True))
        if len(set(pairs)) < len(pairs):
            parent, token_id = next(pair for pair in pairs if pairs.count(pair) > 1)
            problem = f"twice below node {parent}"
            raise DraftError("Draft.token_ids", token_id, problem, "Propose each once.")

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.token_ids)

    @property
    def depth(self) -> int:
        """Tokens on the longest path."""
        return max(self.depths, default=0)

    @property
    def is_chain(self) -> bool:
        """Whether every token follows the one before it."""
        return len(self.token_ids) == (self.depths[-1] if self.depths else 0)

    @property
    def is_drawn(self) -> bool:
        """Whether the distributions that the tokens were drawn from are known."""
        return self.probabilities is not None and self.probabilities.dim() == 2

    @property
    def chances(self) -> tuple[float, ...] | None:
        """How likely the proposer held each token, where it says so."""
        rows = self.probabilities
        if rows is None:
            return None
        if self.is_drawn:
            rows = rows[range(len(self)), list(self.token_ids)]
        return tuple(rows.tolist())

    def first(self, num_tokens: int) -> Draft:
        """Return the draft of the first nodes; itself if it has no more."""
        if num_tokens >= len(self):
            return self
        rows = None if self.probabilities is None else self.probabilities[:num_tokens]
        return Draft(self.token_ids[:num_tokens], self.parents[:num_tokens], rows, self.proposer)

    def path(self, node: int) -> list[int]:
        """Return the nodes that lead to `node`, itself last; none for -1."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def children(self) -> tuple[tuple[int, ...], ...]:
        """Return the children of -1, 0, … n - 1, in order."""
        return _children(self.parents)

    def ancestors(self) -> tuple[int, ...]:
        """Return what each of 1 + n tokens sees of these, as bits: the committed token is bit 0,
        node i bit i + 1."""
        return ancestors_of(self.parents)

    def check(self, vocab_size: int, max_tokens: int, max_depth: int) -> None:
        """Raise `DraftError` unless the draft is of this vocabulary and within these bounds."""
        tokens = self.token_ids
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
            bad = next(t for t in tokens if not 0 <= t < vocab_size)
            problem, fix = f"is outside the vocabulary of {vocab_size}", "Propose the model's ids."
            raise DraftError("Draft.token_ids", bad, problem, fix)
        size, depth = len(tokens), self.depth
        if size > max_tokens or depth > max_depth:
            large = "tokens", size, max_tokens
            what, value, bound = large if size > max_tokens else ("depth", depth, max_depth)
            problem = f"the sequence has room for {bound}"
            fix = "Keep to the candidate's `max_tokens` and `max_depth`."
            raise DraftError(f"Draft.{what}", value, problem, fix)
        if self.probabilities is not None:
            _check_probabilities(self, self.probabilities, vocab_size)

    def describe(self) -> dict[str, Any]:
        """Return the tokens and the shape."""
        shape = "chain" if self.is_chain else f"tree of depth {self.depth}"
        facts = {"proposer": self.proposer, "tokens": list(self.token_ids), "shape": shape}
        return facts if self.is_chain else {**facts, "parents": list(self.parents)}


def _whole(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    if type(values) is tuple and set(map(type, values)) <= {int}:
        return values
    try:
        found = tuple(values)
        whole = tuple(int(value) for value in found)
    except (TypeError, ValueError):
        raise DraftError(
            f"Draft.{name}", values, "is no list of whole numbers", "Use ints."
        ) from None
    if whole != found or any(isinstance(value, bool) for value in found):
        raise DraftError(f"Draft.{name}", found, "holds more than whole numbers", "Use ints.")
    return whole


# What follows from parents alone is worked out once: step after step drafts have few shapes.
_shapes = lru_cache(maxsize=1024)


@_shapes
def _chain(num_tokens: int) -> tuple[int, ...]:
    return tuple(range(-1, num_tokens - 1))


@_shapes
def _children(parents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in range(len(parents) + 1)]
    for node, parent in enumerate(parents):
        found[parent + 1].append(node)
    return tuple(map(tuple, found))


@_shapes
def ancestors_of(parents: tuple[int, ...]) -> tuple[int, ...]:
    """Return what each token of a draft of this shape sees; see `Draft.ancestors`."""
    seen = [1]
    for node, parent in enumerate(parents):
        seen.append(seen[parent + 1] | 1 << node + 1)
    return tuple(seen)


@_shapes
def _depths(parents: tuple[int, ...]) -> tuple[int, ...]:
    depths: list[int] = []
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            problem = f"is the parent of node {node}, and does not come before it"
            fix = "A draft is a tree: list parents before their children."
            raise DraftError("Draft.parents", parent, problem, fix)
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return tuple(depths)


def _check_probabilities(draft: Draft, rows: Tensor, vocab_size: int) -> None:
    """Refuse distributions that the tokens cannot have been drawn from."""
    name, n = "Draft.probabilities", len(draft)
    shape = tuple(rows.shape)
    if shape not in ((n,), (n, vocab_size)):
        fix = "Give one number for each token, or its whole distribution."
        raise DraftError(name, shape, f"of {n} tokens of a vocabulary of {vocab_size}", fix)
    if not draft.is_drawn:
        return
    if not bool((rows.isfinite() & (rows >= 0)).all()):
        raise DraftError(name, shape, "holds NaN, infinite or negative numbers", "Use a softmax's.")
    if bool(((rows.double().sum(dim=1) - 1).abs() > 1e-3).any()):
        raise DraftError(name, shape, "a row does not sum to 1", "Normalise it.")
    for node, token_id in enumerate(draft.token_ids):
        if float(rows[node, token_id]) <= 0:
            problem = f"gives token {token_id} of node {node} nothing, so it was not drawn from it"
            raise DraftError(name, 0.0, problem, "Give the distribution that was drawn from.")
