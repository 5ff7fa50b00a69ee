"""Verification rules: which path of a draft is accepted, and what token follows it.

A rule sees p, the distributions that the target model would draw from after each node, with
everything applied (temperature, filters, penalties, guides). Exact rules return tokens of the very
law that drawing from p one by one has; lossy ones do not, and say so. All decisions go through a
`Chance`.

Sources. Chains: Leviathan, Kalman and Matias 2023; Chen et al. 2023. Trees: EAGLE (Li et al. 2024)
for given siblings; Sequoia (Chen et al. 2024) for siblings drawn without replacement. Typical
acceptance: Medusa (Cai et al. 2024). Relaxed acceptance: TensorRT-LLM's for thinking phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from workbench.draft import Draft
from workbench.speculation.chance import Chance


class Verdict(NamedTuple):
    """The accepted nodes, a path from the root, and the token that follows it."""

    nodes: tuple[int, ...]
    token_id: int


class Rule(Protocol):
    """Decides on a draft of n tokens. lossy: whether the tokens have another law than p's."""

    name: ClassVar[str]
    lossy: ClassVar[bool]

    def __call__(self, draft: Draft, p: Tensor, chance: Chance) -> Verdict:
        """Return the verdict. p [1 + n, V] float64: what follows the last token, and each node."""


@dataclass(frozen=True)
class ExactMatch:
    """Draw as plain decoding would, and go on where the draft has the drawn token.

    Exact. A node is accepted with probability p(x), and one of given siblings with the sum of
    theirs, which no rule for given drafts exceeds. Drawn with the numbers that plain decoding would
    use, which the engine does, a request's tokens are those it has without speculation.
    """

    name: ClassVar[str] = "exact match"
    lossy: ClassVar[bool] = False

    def __call__(self, draft: Draft, p: Tensor, chance: Chance) -> Verdict:
        """Return the verdict."""
        found = {pair: i for i, pair in enumerate(zip(draft.parents, draft.token_ids, strict=True))}
        nodes: list[int] = []
        while True:
            last = nodes[-1] if nodes else -1
            token_id = chance.draws(p[last + 1])
            if (last, token_id) not in found:
                return Verdict(tuple(nodes), token_id)
            nodes.append(found[last, token_id])


@dataclass(frozen=True)
class OneHot:
    """Take each sibling with its probability, in order; else strike it from p and ask the next.

    Exact for drafts that were not drawn: a chain is verified against q = 1 for its token, a tree as
    EAGLE does.
    """

    name: ClassVar[str] = "one-hot"
    lossy: ClassVar[bool] = False

    def __call__(self, draft: Draft, p: Tensor, chance: Chance) -> Verdict:
        """Return the verdict."""

        return _walk(draft, p, chance, [None] * (len(draft) + 1))


@dataclass(frozen=True)
class Rejection:
    """Accept a token drawn from q with probability min(1, p / q), else go on with max(0, p - q).

    Exact for drafts that were drawn from the distributions they come with; siblings without
    replacement.
    """

    name: ClassVar[str] = "rejection"
    lossy: ClassVar[bool] = False

    def __call__(self, draft: Draft, p: Tensor, chance: Chance) -> Verdict:
        """Return the verdict."""
        rows = draft.probabilities
        assert rows is not None, "rejection needs what the draft was drawn from"
        q = rows.to(p.device, torch.float64)
        q = q / q.sum(dim=1, keepdim=True)
        drawn = [q[below[0]] if below else None for below in draft.children()]
        return _walk(draft, p, chance, drawn)


def _walk(draft: Draft, p: Tensor, chance: Chance, drawn: Sequence[Tensor | None]) -> Verdict:
    """Ask siblings in order and go down to the first accepted.

    drawn: for -1 and each node, the distribution that its children were drawn from; None where they
    are just given.
    """
    children = draft.children()
    nodes: list[int] = []
    while True:
        last = nodes[-1] if nodes else -1
        residual, q = p[last + 1], drawn[last + 1]
        for node in children[last + 1]:
            token_id = draft.token_ids[node]
            chosen = residual[token_id] / (1.0 if q is None else q[token_id])
            if chance.accepts(float(chosen)):
                nodes.append(node)
                break
            if q is None:
                residual = _normal(_without(residual, token_id), residual)
            else:
                residual = _normal((residual - q).clamp_(min=0.0), residual)
                q = _normal(_without(q, token_id), q)
        else:
            return Verdict(tuple(nodes), chance.draws(residual))


def _without(weights: Tensor, token_id: int) -> Tensor:
    weights = weights.clone()
    weights[token_id] = 0.0
    return weights


def _normal(weights: Tensor, otherwise: Tensor) -> Tensor:
    """Return weights as a distribution; `otherwise` where rounding has left none of it, which
    follows only on a refusal of probability 0."""
    total = weights.sum()
    return weights / total if float(total) > 0 else otherwise


@dataclass(frozen=True)
class Typical:
    """Accept tokens that are not unlikely: p(x) > min(epsilon, delta * exp(-H(p))). Lossy.

    Of the accepted paths the longest is taken, of equal ones the first.
    """

    epsilon: float = 0.09
    delta: float = 0.3
    name: ClassVar[str] = "typical acceptance"
    lossy: ClassVar[bool] = True

    def __call__(self, draft: Draft, p: Tensor, chance: Chance) -> Verdict:
        """Return the verdict."""
        entropy = -(torch.special.xlogy(p, p)).sum(dim=1)
        bounds = (self.delta * (-entropy).exp()).clamp(max=self.epsilon)
        chosen = p[[i + 1 for i in draft.parents], list(draft.token_ids)]
        passed = (chosen > bounds[[i + 1 for i in draft.parents]]).tolist()
        return _longest(draft, passed, p, chance)


@dataclass(frozen=True)
class Relaxed:
    """Accept tokens among the top_k likeliest whose log-probability is within delta of the best.

    Lossy. At temperature 0 p has one token only, and nothing is relaxed.
    """

    top_k: int = 10
    delta: float = 0.6
    name: ClassVar[str] = "relaxed acceptance"
    lossy: ClassVar[bool] = True

    def __call__(self, draft: Draft, p: Tensor, chance: Chance) -> Verdict:
        """Return the verdict."""
        best = p.topk(min(self.top_k, p.shape[1]), dim=1).values
        bounds = torch.maximum(best[:, 0] * math.exp(-self.delta), best[:, -1])
        chosen = p[[i + 1 for i in draft.parents], list(draft.token_ids)]
        bound = bounds[[i + 1 for i in draft.parents]]
        passed = ((chosen >= bound) & (chosen > 0)).tolist()
        return _longest(draft, passed, p, chance)


@dataclass(frozen=True)
class Synthetic:
    """Accept each further token of the draft's first path with a given probability, whatever it
    says: for studies of what an acceptance rate would be worth. Lossy; the text means nothing."""

    rate: float
    name: ClassVar[str] = "synthetic acceptance"
    lossy: ClassVar[bool] = True

    def __call__(self, draft: Draft, p: Tensor, chance: Chance) -> Verdict:
        """Return the verdict."""
        nodes = self.path(draft, chance)
        return Verdict(nodes, chance.draws(p[nodes[-1] + 1 if nodes else 0]))

    def path(self, draft: Draft, chance: Chance) -> tuple[int, ...]:
        """Return the accepted nodes."""
        children = draft.children()
        nodes: list[int] = []
        while True:
            below = children[nodes[-1] + 1 if nodes else 0]
            if not below or not chance.accepts(self.rate):
                return tuple(nodes)
            nodes.append(below[0])


def _longest(draft: Draft, passed: list[bool], p: Tensor, chance: Chance) -> Verdict:
    """Return the longest path of which every node has passed, and a token drawn after it."""
    reached: list[bool] = []
    best = -1
    for node, parent in enumerate(draft.parents):
        reached.append(passed[node] and (parent < 0 or reached[parent]))
        if reached[node] and draft.depths[node] > (0 if best < 0 else draft.depths[best]):
            best = node
    return Verdict(tuple(draft.path(best)), chance.draws(p[best + 1]))


RULES: dict[str, type[Rule]] = {
    "exact_match": ExactMatch,
    "one_hot": OneHot,
    "rejection": Rejection,
    "typical": Typical,
    "relaxed": Relaxed,
}
