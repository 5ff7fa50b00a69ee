"""Attention under ancestor masks: every backend against its definition, beside other rows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from paged import Batch, make_batch
from torch import Tensor

from workbench.batch import Backend, StepPlan, TreeMasks
from workbench.draft import Draft
from workbench.run.trees import logit_rows, rotary_positions, tree_masks


def random_draft(size: int, seed: int) -> Draft:
    source = random.Random(seed)
    return Draft(tuple(range(size)), tuple(source.randint(-1, node - 1) for node in range(size)))


# (decodes' contexts), (drafts' sizes and older tokens), (chunks: new, context)
CASES = {
    "one tree": ([], [(5, 3)], []),
    "one token": ([4], [(1, 3)], []),
    "beside decodes and chunks": ([9, 4, 30], [(6, 20), (3, 1)], [(5, 5), (4, 19)]),
    "over several words": ([3], [(40, 7), (70, 33)], [(6, 6)]),
    "a chain among trees": ([2, 2], [(4, 11), (9, 17), (2, 40)], [(3, 8)]),
    "beyond a span": ([1], [(20, 200), (33, 127)], []),
}


def make(backend: Backend, case: str, device: str) -> tuple[Batch, list[Draft]]:
    decodes, trees, chunks = CASES[case]
    drafts = [random_draft(size, seed) for seed, (size, _) in enumerate(trees)]
    if case == "a chain among trees":
        drafts[0] = Draft(drafts[0].token_ids)
    rows = [(1, n) for n in decodes]
    rows += [(size + 1, old + size + 1) for size, old in trees] + chunks
    batch = make_batch(backend, rows, device=device, block_size=4)
    words = -(-max(len(draft) + 1 for draft in drafts) // 32)
    bits = [seen for draft in drafts for seen in draft.ancestors()]
    masks = [[seen >> 32 * w & 0xFFFFFFFF for w in range(words)] for seen in bits]
    ancestors = torch.tensor(masks, dtype=torch.int64).to(torch.int32).to(device)
    batch.ctx.trees = TreeMasks(len(decodes), len(trees), ancestors)
    batch.ctx.num_decodes = len(decodes)
    batch.ctx.prepared = backend.prepare(batch.ctx)
    return batch, drafts


def definition(batch: Batch, drafts: list[Draft], scale: float) -> Tensor:
    out, start = [], 0
    trees = batch.ctx.trees
    assert trees is not None
    for row, num_new in enumerate(batch.ctx.query_lens):
        keys, values = (x[row].double().cpu() for x in (batch.keys, batch.values))
        old = len(keys) - num_new
        draft = row - trees.first_row
        seen_by = [(1 << i + 1) - 1 for i in range(num_new)]
        if 0 <= draft < len(drafts):
            seen_by = drafts[draft].ancestors()
        for i in range(num_new):
            seen = [*range(old), *(old + j for j in range(num_new) if seen_by[i] >> j & 1)]
            query = batch.q[start + i].double().cpu()
            group = len(query) // keys.shape[1]
            k = keys[seen].repeat_interleave(group, 1)
            v = values[seen].repeat_interleave(group, 1)
            weights = (torch.einsum("hd,khd->hk", query, k) * scale).softmax(-1)
            out.append(torch.einsum("hk,khd->hd", weights, v))
        start += num_new
    return torch.stack(out)


@pytest.mark.parametrize("case", CASES)
def test_trees_attend_along_their_paths(backend: Backend, device: str, case: str) -> None:
    batch, drafts = make(backend, case, device)
    actual = backend.attention(batch.q, batch.k, batch.v, 0, batch.ctx, scale=0.3)
    expected = definition(batch, drafts, 0.3)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=1e-4, atol=1e-5)


def test_neighbours_of_a_tree_do_not_notice(backend: Backend, device: str) -> None:
    """A chain is verified to the same numbers under masks as without them."""
    batch, drafts = make(backend, "beside decodes and chunks", device)
    kv = [layer.clone() for layer in batch.ctx.kv or []]
    with_tree = backend.attention(batch.q, batch.k, batch.v, 0, batch.ctx, scale=0.3)
    plain = replace(batch.ctx, trees=None, kv=kv)
    plain.prepared = backend.prepare(plain)
    without = backend.attention(batch.q, batch.k, batch.v, 0, plain, scale=0.3)
    drafted = slice(3, 3 + sum(len(draft) + 1 for draft in drafts))
    rest = [i for i in range(len(with_tree)) if not drafted.start <= i < drafted.stop]
    torch.testing.assert_close(with_tree[rest], without[rest], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(with_tree[drafted], without[drafted])


def test_a_plan_s_drafts_as_tensors() -> None:
    plan = StepPlan(1, starts=[5, 9, 2], num_new=[1, 4, 3], sampled=[0, 1], num_decodes=1)
    plan.drafts = {1: Draft((7, 8, 9), (-1, -1, 0))}
    ends = torch.tensor([1, 5, 8]).numpy()
    positions = torch.tensor([5, 9, 10, 11, 12, 2, 3, 4]).numpy()
    assert rotary_positions(plan, positions, ends - plan.num_new).tolist() == [
        *(5, 9, 10, 10, 11),
        *(2, 3, 4),
    ]
    assert logit_rows(plan, ends).tolist() == [0, 1, 2, 3, 4]
    masks = tree_masks(plan, torch.device("cpu"))
    assert masks is not None
    assert (masks.first_row, masks.num_rows) == (1, 1)
    assert masks.ancestors.tolist() == [[0b1], [0b11], [0b101], [0b1011]]
    plan.drafts = {1: Draft((7, 8, 9))}
    assert tree_masks(plan, torch.device("cpu")) is None
