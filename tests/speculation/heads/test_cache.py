"""`HeadCache` and the driving of a head: rows are independent, drafts leave nothing behind."""

from __future__ import annotations

from typing import Any

import head_files as files
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.ops import get_backend
from workbench.speculation.heads import (
    TreeShape,
    commit,
    draft_chain,
    draft_tree,
    load_head,
    new_cache,
)
from workbench.speculation.heads.tree import ancestors_of

BACKEND = get_backend("reference", "cpu")


@pytest.fixture(scope="module")
def head(target: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(2)
    config = files.CONFIG | {"draft_vocab_size": 20}
    return load_head(files.write(tmp_path_factory.mktemp("h"), config, files.eagle3()), target)


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return random tokens and states of a sequence."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, files.VOCAB, (count,), generator=generator)
    return tokens, torch.randn(count, 3 * files.H, generator=generator)


def alone(head: Any, tokens: Tensor, states: Tensor) -> Tensor:
    """Return the output of a sequence's last pair, computed by itself in one go."""
    return commit(head, new_cache(head, 1), [0], tokens, states, [len(tokens)], BACKEND)


def test_rows_of_a_batch_are_as_they_are_alone(head) -> None:
    counts = {0: [3, 25, 2], 2: [7, 1, 24], 1: [1, 1, 1]}
    texts = {row: pairs(sum(steps), row) for row, steps in counts.items()}
    cache = new_cache(head, 4, max_len=2)  # it must grow
    for step in range(3):
        rows = list(counts) if step != 1 else [2, 0]  # row 1 misses a step
        news = [counts[row][step] for row in rows]
        spans = [
            slice(cache.lens[row], cache.lens[row] + n) for row, n in zip(rows, news, strict=True)
        ]
        tokens = torch.cat([texts[row][0][span] for row, span in zip(rows, spans, strict=True)])
        states = torch.cat([texts[row][1][span] for row, span in zip(rows, spans, strict=True)])
        out = commit(head, cache, rows, tokens, states, news, BACKEND)
        for i, row in enumerate(rows):
            length = cache.lens[row]
            expected = alone(head, texts[row][0][:length], texts[row][1][:length])
            torch.testing.assert_close(out[i : i + 1], expected, rtol=1e-4, atol=1e-5)
    assert cache.lens == [30, 2, 32, 0]


def test_drafting_leaves_nothing_behind(head) -> None:
    cache, (tokens, states) = new_cache(head, 2), pairs(9, 1)
    out = commit(head, cache, [1, 0], tokens, states, [4, 5], BACKEND)
    chain = draft_chain(head, cache, [1, 0], out, 4, BACKEND)
    tree = draft_tree(head, cache, [1, 0], out, TreeShape(12, 3, 4), BACKEND)
    assert cache.lens == [5, 4]
    assert torch.equal(draft_chain(head, cache, [1, 0], out, 4, BACKEND).logits, chain.logits)
    more, more_states = pairs(3, 7)
    after = commit(head, cache, [1], more, more_states, [3], BACKEND)
    expected = alone(head, torch.cat((tokens[:4], more)), torch.cat((states[:4], more_states)))
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    assert tree.token_ids.shape == (2, 12)


@given(steps=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_a_row_rolled_back_is_as_if_it_had_never_gone_on(head, steps) -> None:
    """Each step commits some pairs and takes some of all of them back."""
    cache, kept_tokens, kept_states = new_cache(head, 1, max_len=3), [], []
    for number, (count, back) in enumerate(steps):
        tokens, states = pairs(count, number)
        commit(head, cache, [0], tokens, states, [count], BACKEND)
        kept_tokens += tokens.tolist()
        kept_states += list(states)
        length = max(0, len(kept_tokens) - back)
        cache.truncate(0, length)
        del kept_tokens[length:], kept_states[length:]
    tokens, states = pairs(1, 99)
    out = commit(head, cache, [0], tokens, states, [1], BACKEND)
    whole = torch.tensor([*kept_tokens, int(tokens)]), torch.stack([*kept_states, states[0]])
    torch.testing.assert_close(out, alone(head, *whole), rtol=1e-4, atol=1e-5)


def test_what_was_rolled_back_cannot_leak(head) -> None:
    """Its slots are masked beside a longer row, and 0 times NaN is NaN."""
    cache, (tokens, states) = new_cache(head, 2), pairs(11, 1)
    commit(head, cache, [0, 1], tokens, states, [6, 5], BACKEND)
    cache.kv[:, :, 0, 1:] = torch.nan
    cache.truncate(0, 1)
    more, more_states = pairs(2, 5)
    out = commit(head, cache, [0, 1], more, more_states, [1, 1], BACKEND)
    assert out.isfinite().all()


def test_a_chain_is_the_first_branch_of_a_tree(head) -> None:
    cache, (tokens, states) = new_cache(head, 2), pairs(9, 3)
    out = commit(head, cache, [0, 1], tokens, states, [4, 5], BACKEND)
    chain = draft_chain(head, cache, [0, 1], out, 4, BACKEND)
    tree = draft_tree(head, cache, [0, 1], out, TreeShape(4, 4, 1), BACKEND)
    assert torch.equal(tree.token_ids, chain.token_ids)
    assert tree.parents.tolist() == [[-1, 0, 1, 2]] * 2
    best = chain.logits.log_softmax(-1).max(-1).values.cumsum(1)
    torch.testing.assert_close(tree.scores, best, rtol=1e-4, atol=1e-4)


def test_every_path_of_a_tree_is_what_a_chain_would_have_scored(head) -> None:
    """Nodes see their own ancestors alone: each path, drafted by itself, has the same scores."""
    cache, (tokens, states) = new_cache(head, 1), pairs(5, 4)
    out = commit(head, cache, [0], tokens, states, [5], BACKEND)
    tree = draft_tree(head, cache, [0], out, TreeShape(30, 3, 4), BACKEND)
    ids, parents = tree.token_ids[0], tree.parents[0].tolist()
    depths = set()
    for node, seen in enumerate(ancestors_of(parents)):
        path = ids[seen.nonzero()[:, 0]]
        depths.add(len(path))
        fresh, score, feature = new_cache(head, 1), 0.0, out
        commit(head, fresh, [0], tokens, states, [5], BACKEND)
        for token in path:
            ctx = fresh.extend([0], [1], BACKEND)
            logprobs = head.logits(feature, ctx)[0].log_softmax(-1)
            draft_id = (head.target_ids(torch.arange(20)) == token).nonzero()[0, 0]
            score += float(logprobs[draft_id])
            feature = head(token[None], head.carry(feature, ctx), ctx)
            fresh.commit([0], [1])
        assert abs(float(tree.scores[0, node]) - score) < 1e-3
    assert depths == {1, 2, 3}
