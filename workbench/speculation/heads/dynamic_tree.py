"""EAGLE-2's dynamic trees: expand the likeliest nodes depth by depth, then keep the best of all.

Pure functions over a `step` that a head provides; nothing here knows of models. All rows of a batch
grow side by side, with the same number of nodes. Source: arXiv 2406.16858; the authors'
`topK_genrate` (60 tokens, depth 7, top 10 by default).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.config import require_positive
from workbench.speculation.heads.tree import DraftTree


class Candidates(NamedTuple):
    """The top_k continuations of m nodes: token_ids and logprobs, both [R, m, top_k]."""

    token_ids: Tensor
    logprobs: Tensor


class Frontier(NamedTuple):
    """Nodes to go on from.

    token_ids [R, m]; parents [R, m]: places of their parents in the *previous* frontier (all 0 in
    the first, whose parent is the root); depth: 1 for the first.
    """

    token_ids: Tensor
    parents: Tensor
    depth: int


Step = Callable[[Frontier], Candidates]


@dataclass(frozen=True, slots=True)
class TreeShape:
    """num_nodes: drafted nodes kept (EAGLE's `total_token` counts the root too: one more).

    depth: levels below the root. top_k: children tried of a node, and nodes that go on at each
    depth. EAGLE's own `depth` counts its expansions, of which the first level is none: one less.
    """

    num_nodes: int = 59
    depth: int = 8
    top_k: int = 10

    def __post_init__(self) -> None:
        """Raise `ConfigError` for sizes below 1."""
        for name in ("num_nodes", "depth", "top_k"):
            require_positive(f"TreeShape.{name}", getattr(self, name))


def grow(
    root: Candidates, step: Step, shape: TreeShape, max_depths: Tensor | None = None
) -> DraftTree:
    """Return the best trees below roots with these continuations (`root` has m = 1).

    Level 1 is the root's top_k. Each further level scores the top_k continuations of every live
    node by the sum of log-probabilities, and the best top_k of them all go on. In the end the best
    `num_nodes` of all levels stay. max_depths [R]: where a row may go less deep, its nodes beyond
    that come last of all, and score -inf.
    """
    token_ids, scores = [root.token_ids[:, 0]], [root.logprobs[:, 0]]
    parents = [torch.full_like(token_ids[0], -1)]
    frontier = Frontier(token_ids[0], torch.zeros_like(token_ids[0]), 1)
    live, places = scores[0], torch.arange(live_size(root), device=scores[0].device)
    places = places.expand_as(live)  # where in the list of all nodes the frontier's are
    offset = live.shape[1]
    for depth in range(2, shape.depth + 1):
        candidates = step(frontier)
        total = live.unsqueeze(2) + candidates.logprobs  # [R, m, top_k]
        token_ids.append(candidates.token_ids.flatten(1))
        scores.append(total.flatten(1))
        parents.append(places.unsqueeze(2).expand_as(total).flatten(1))
        live, best = first_best(scores[-1], shape.top_k)
        from_place = best // candidates.token_ids.shape[2]
        frontier = Frontier(token_ids[-1].gather(1, best), from_place, depth)
        places, offset = offset + best, offset + scores[-1].shape[1]
    if max_depths is not None:
        limits = max_depths.to(live.device).unsqueeze(1)
        for depth, own in enumerate(scores, 1):
            scores[depth - 1] = own.masked_fill(limits < depth, -torch.inf)
    every = DraftTree(torch.cat(token_ids, 1), torch.cat(parents, 1), torch.cat(scores, 1))
    return rerank(every, shape.num_nodes)


def live_size(root: Candidates) -> int:
    """Return how many nodes the first level has."""
    return root.token_ids.shape[2]


def first_best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` greatest of scores [R, n] and where they are; of equals the first."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :count], order[:, :count]


def rerank(tree: DraftTree, num_nodes: int) -> DraftTree:
    """Return the `num_nodes` nodes of the greatest scores, in their order, as trees of their own.

    A child scores no more than its parent and comes after it, so of equals the first is kept and
    the kept set holds every ancestor of its nodes.
    """
    _, kept = first_best(tree.scores, num_nodes)
    kept = kept.sort(dim=1).values
    size = tree.scores.shape[1]
    new_place = torch.full((kept.shape[0], size + 1), -1, device=kept.device)
    order = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    new_place.scatter_(1, kept, order)
    old_parents = tree.parents.gather(1, kept)
    # -1, the root, looks up the extra last column and stays -1
    parents = new_place.gather(1, torch.where(old_parents < 0, size, old_parents))
    return DraftTree(tree.token_ids.gather(1, kept), parents, tree.scores.gather(1, kept))
