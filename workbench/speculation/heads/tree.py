"""Drafted trees, and static ones: which of each head's best tokens are tried behind which.

A static tree is a set of paths of ranks, as Medusa publishes it: (0, 1) is the second best token of
head 1 behind the best of head 0. `grow_paths` finds the paths that are worth their place from
measured accuracies. Everything here is a pure function.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.errors import ConfigError

Paths = tuple[tuple[int, ...], ...]


class DraftTree(NamedTuple):
    """Trees of R sequences, N nodes each; parents come before children.

    token_ids [R, N]; parents [N] or [R, N]: the node before, -1 behind the last committed token;
    scores [R, N]: the sum of log-probabilities from there to the node.
    """

    token_ids: Tensor
    parents: Tensor
    scores: Tensor


class StaticTree(NamedTuple):
    """Nodes sorted by (depth, path). parents [N], -1 for the root; depths [N] from 1; ranks [N]."""

    parents: Tensor
    depths: Tensor
    ranks: Tensor


def drafts_trees(device: torch.device, trees: bool | None) -> bool:
    """Return whether to draft trees; None for what pays on a device.

    More rows of a pass are almost free on a GPU, where a second guess now and then is right. A CPU
    computes each of them: chains accept less there and are faster.
    """
    return device.type == "cuda" if trees is None else trees


def chain_path(num_heads: int) -> Paths:
    """Return the path of each head's best token."""
    return tuple((0,) * depth for depth in range(1, num_heads + 1))


def static_tree(paths: Iterable[Sequence[int]]) -> StaticTree:
    """Return the nodes of a set of paths.

    Raises `ConfigError` for an empty set, a path given twice, a negative rank, or a path whose
    parent is missing.
    """
    ordered = sorted((tuple(path) for path in paths), key=lambda path: (len(path), path))
    field, fix = "tree paths", "Give each path once, and every path's beginnings as well."
    if not ordered or () in ordered:
        raise ConfigError(field, ordered[:1], "a tree has nodes below its root", fix)
    index = {path: i for i, path in enumerate(ordered)}
    if len(index) < len(ordered):
        raise ConfigError(field, len(ordered), "a path is given twice", fix)
    for path in ordered:
        if min(path) < 0 or (len(path) > 1 and path[:-1] not in index):
            raise ConfigError(field, path, "its parent is no node of the tree", fix)
    return StaticTree(
        torch.tensor([index.get(path[:-1], -1) for path in ordered]),
        torch.tensor([len(path) for path in ordered]),
        torch.tensor([path[-1] for path in ordered]),
    )


def fill_static(tree: StaticTree, logits: Tensor) -> DraftTree:
    """Return the trees that heads' logits [num_heads, R, vocab] make of static nodes.

    Raises `ConfigError` for a tree that is deeper than there are heads.
    """
    deepest, most = int(tree.depths.max()), int(tree.ranks.max()) + 1
    if deepest > logits.shape[0]:
        fix = "Drop its deepest paths."
        raise ConfigError("tree depth", deepest, f"there are {logits.shape[0]} heads", fix)
    best = logits.float().log_softmax(-1).topk(most, dim=-1)  # [num_heads, R, most]
    heads, ranks = (tree.depths - 1).to(logits.device), tree.ranks.to(logits.device)
    token_ids, own = best.indices[heads, :, ranks].T, best.values[heads, :, ranks].T
    scores = own.clone()
    for node, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            scores[:, node] += scores[:, parent]
    return DraftTree(token_ids, tree.parents, scores)


def ancestors_of(parents: Sequence[int]) -> Tensor:
    """Return [N, N] bool: row i marks node i and every node on its way to the root."""
    seen = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        assert parent < node, "parents come before children"
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen


def grow_paths(accuracy: Tensor, size: int) -> Paths:
    """Return the `size` paths most likely to be right, as Medusa's authors grow their trees.

    accuracy [num_heads, K]: how often a head's token of each rank was right. A path's worth is the
    product along it, and the best one that is in reach is added until there are enough: the
    expected length of the tree with `size` nodes is the greatest there is, if heads err
    independently.
    """
    table = accuracy.tolist()
    reach: list[tuple[float, tuple[int, ...]]]
    reach = [(-worth, (rank,)) for rank, worth in enumerate(table[0])]
    heapq.heapify(reach)
    chosen: list[tuple[int, ...]] = []
    while reach and len(chosen) < size:
        worth, path = heapq.heappop(reach)
        chosen.append(path)
        if len(path) < len(table):
            for rank, more in enumerate(table[len(path)]):
                heapq.heappush(reach, (worth * more, (*path, rank)))
    return tuple(sorted(chosen, key=lambda path: (len(path), path)))


def rank_accuracy(logits: Tensor, token_ids: Tensor, num_ranks: int = 10) -> Tensor:
    """Return how often each head's token of each rank is the right one: [num_heads, num_ranks].

    logits [num_heads, T, vocab] of the states of token_ids [T] of one text; head i is about token
    t + 2 + i, and the last states, about tokens that are not there, do not count.
    """
    rows = []
    for i, own in enumerate(logits):
        right = token_ids[2 + i :]
        best = own[: len(right)].topk(num_ranks, dim=-1).indices
        rows.append((best == right.unsqueeze(1)).float().mean(0))
    return torch.stack(rows)
