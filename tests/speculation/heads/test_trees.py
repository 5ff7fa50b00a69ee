"""Static and dynamic trees: their shape, their growth, and EAGLE-2's rerank against brute force."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.speculation.heads import TreeShape, grow_paths, rank_accuracy, static_tree
from workbench.speculation.heads.dynamic_tree import Candidates, Frontier, grow, rerank
from workbench.speculation.heads.tree import DraftTree, ancestors_of


def test_a_static_tree_is_sorted_by_depth_and_path() -> None:
    tree = static_tree([(1,), (0, 1), (0,), (0, 0), (0, 1, 2), (1, 0)])
    assert tree.parents.tolist() == [-1, -1, 0, 0, 1, 3]
    assert tree.depths.tolist() == [1, 1, 2, 2, 2, 3]
    assert tree.ranks.tolist() == [0, 1, 0, 1, 0, 2]
    seen = ancestors_of(tree.parents.tolist())
    assert seen.sum(1).tolist() == tree.depths.tolist()
    assert seen[5].nonzero()[:, 0].tolist() == [0, 3, 5]


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ([], "nodes below its root"),
        ([(), (0,)], "nodes below its root"),
        ([(0,), (0,)], "given twice"),
        ([(0,), (1, 0)], "parent is no node"),
        ([(-1,)], "parent is no node"),
    ],
)
def test_what_is_no_tree_is_refused(paths, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        static_tree(paths)


@given(
    table=st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=3), min_size=1, max_size=3),
    size=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_grown_paths_are_worth_the_most(table, size: int) -> None:
    """Against all paths: the expected accepted length of the tree is the greatest possible."""
    accuracy = torch.tensor(table) / 200
    paths = grow_paths(accuracy, size)
    every = [p for depth in range(1, len(table) + 1) for p in product(range(3), repeat=depth)]

    def worth(path: tuple[int, ...]) -> float:
        return float(torch.tensor([accuracy[i, rank] for i, rank in enumerate(path)]).prod())

    best = sorted((worth(p) for p in every), reverse=True)[:size]
    assert sum(map(worth, paths)) == pytest.approx(sum(best), rel=1e-5)
    assert len(static_tree(paths).parents) == min(size, len(every))


def test_rank_accuracy_counts_the_right_token() -> None:
    tokens = torch.tensor([3, 1, 4, 1, 5])
    logits = torch.zeros(2, 5, 8)
    for t in range(3):
        logits[0, t, tokens[t + 2]] = 2.0  # head 0: always first
    logits[1, 0, tokens[3]] = 1.0  # head 1: once second, once first
    logits[1, 0, 7] = 2.0
    logits[1, 1, tokens[4]] = 2.0
    assert rank_accuracy(logits, tokens, 2).tolist() == [[1.0, 0.0], [0.5, 0.5]]


def markov(vocab: int, seed: int, rows: int):
    """Return (root candidates, step) of random Markov chains, one per row, and their tables."""
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randn(rows, vocab, vocab, generator=generator).log_softmax(-1)
    top_k = 3

    def of(tokens: torch.Tensor) -> Candidates:
        logprobs = torch.stack([tables[row][tokens[row]] for row in range(rows)])
        best = logprobs.topk(top_k, dim=-1)
        return Candidates(best.indices, best.values)

    def step(frontier: Frontier) -> Candidates:
        return of(frontier.token_ids)

    return of(torch.zeros(rows, 1, dtype=torch.long)), step, tables


@given(seed=st.integers(0, 10**6), nodes=st.integers(1, 20), depth=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_dynamic_trees_follow_the_paper(seed: int, nodes: int, depth: int) -> None:
    """Against EAGLE-2 written with lists, sequence by sequence."""
    root, step, tables = markov(6, seed, 2)
    tree = grow(root, step, TreeShape(nodes, depth, 3))
    for row, table in enumerate(tables):
        level = [(float(v), (int(t),)) for v, t in zip(*(table[0].topk(3)), strict=True)]
        every, live = list(level), level
        for _ in range(depth - 1):
            level = [
                (score + float(v), (*path, int(t)))
                for score, path in live
                for v, t in zip(*(table[path[-1]].topk(3)), strict=True)
            ]
            every += level
            live = sorted(level, key=lambda node: -node[0])[:3]
        kept = sorted(every, key=lambda node: -node[0])[:nodes]
        parents, ids = tree.parents[row].tolist(), tree.token_ids[row]
        paths = [tuple(ids[seen].tolist()) for seen in ancestors_of(parents)]
        assert sorted(paths) == sorted(path for _, path in kept)
        assert sorted(tree.scores[row].tolist()) == pytest.approx(sorted(s for s, _ in kept))
        siblings = set(zip(parents, ids.tolist(), strict=True))
        assert len(siblings) == len(paths), "no token twice behind one node"


def test_rows_go_as_deep_as_each_may() -> None:
    """A row held to one level has all of its first level, and nothing else that counts."""
    root, step, _ = markov(6, 3, 2)
    tree = grow(root, step, TreeShape(7, 3, 3), torch.tensor([1, 3]))
    free = grow(root, step, TreeShape(7, 3, 3))
    assert torch.equal(tree.token_ids[1], free.token_ids[1])
    kept = tree.scores[0].isfinite()
    assert kept.sum() == 3
    assert tree.parents[0][kept].tolist() == [-1] * 3


def test_equal_scores_keep_ancestors() -> None:
    """With certain tokens, scores are all 0: the first in order stay, so parents do."""
    tree = DraftTree(torch.arange(6)[None], torch.tensor([[-1, -1, 0, 0, 2, 4]]), torch.zeros(1, 6))
    kept = rerank(tree, 4)
    assert kept.token_ids.tolist() == [[0, 1, 2, 3]]
    assert kept.parents.tolist() == [[-1, -1, 0, 0]]


def test_a_tree_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"TreeShape\.depth"):
        TreeShape(depth=0)
