"""Drive a `SequentialHead` with its cache: commit what the target made, draft chains and trees.

Each function takes the head, its `HeadCache` and rows of it, and changes nothing but the cache. A
proposer keeps one cache, commits each step's accepted (token, state) pairs, and drafts from the
outputs that `commit` returned. Drafting leaves the cache's committed part as it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.batch import Backend, ForwardContext
from workbench.speculation.heads.attention import bare_context
from workbench.speculation.heads.base import SequentialHead
from workbench.speculation.heads.cache import HeadCache
from workbench.speculation.heads.dynamic_tree import Candidates, Frontier, TreeShape, grow
from workbench.speculation.heads.tree import DraftTree


class DraftChain(NamedTuple):
    """Chains of R sequences: token_ids [R, k] of the target, logits [R, k, draft vocabulary]."""

    token_ids: Tensor
    logits: Tensor


def new_cache(head: SequentialHead, num_rows: int, max_len: int = 256) -> HeadCache:
    """Return an empty cache of the head's shape, dtype and device."""
    device = next(head.parameters()).device
    return HeadCache(head.config, num_rows, max_len=max_len, dtype=head.dtype, device=device)


@torch.no_grad()
def commit(
    head: SequentialHead,
    cache: HeadCache,
    rows: Sequence[int],
    token_ids: Tensor,
    states: Tensor,
    counts: Sequence[int],
    backend: Backend,
) -> Tensor:
    """Add `counts[i]` pairs to row `rows[i]`; return the outputs of each row's last: [R, hidden].

    token_ids [T] and states [T, sum of widths] are packed: states of tokens i, i + 1, … beside
    tokens i + 1, i + 2, … (what a sequence has of them beyond the row's length).
    """
    ctx = cache.extend(rows, counts, backend)
    out = head(token_ids, head.features(states.to(head.dtype), ctx), ctx)
    cache.commit(rows, counts)
    ends = torch.tensor(counts).cumsum(0) - 1
    last: Tensor = out[ends.to(out.device)]
    return last


@torch.no_grad()
def draft_chain(
    head: SequentialHead,
    cache: HeadCache,
    rows: Sequence[int],
    out: Tensor,
    length: int,
    backend: Backend,
) -> DraftChain:
    """Return `length` greedy tokens behind each row's last pair, whose output is `out`."""
    bare = bare_context(backend)
    logits = [head.logits(out, bare)]
    token_ids = [head.target_ids(logits[0].argmax(-1))]
    for ahead in range(length - 1):
        ctx = cache.extend(rows, [1] * len(rows), backend, ahead=ahead)
        out = head(token_ids[-1], head.carry(out, ctx), ctx)
        logits.append(head.logits(out, ctx))
        token_ids.append(head.target_ids(logits[-1].argmax(-1)))
    return DraftChain(torch.stack(token_ids, 1), torch.stack(logits, 1))


@torch.no_grad()
def draft_tree(
    head: SequentialHead,
    cache: HeadCache,
    rows: Sequence[int],
    out: Tensor,
    shape: TreeShape,
    backend: Backend,
    max_depths: Tensor | None = None,
) -> DraftTree:
    """Return EAGLE-2's tree behind each row's last committed pair, whose output is `out`.

    max_depths [R]: see `grow`.
    """
    grower = _MaskedGrower(head, shape.top_k, backend, cache, list(rows))
    return grow(grower.candidates(out.unsqueeze(1)), grower.step, shape, max_depths)


class Grower:
    """The step of growing trees over R rows: what may follow the frontier, from its outputs."""

    def __init__(self, head: SequentialHead, top_k: int, backend: Backend) -> None:
        self.head, self.top_k, self.backend = head, top_k, backend
        self.out: Tensor | None = None  # of the latest frontier, [R, m, hidden]

    def candidates(self, out: Tensor) -> Candidates:
        """Return the top_k tokens of outputs [R, m, hidden], and keep the outputs."""
        self.out = out
        bare = bare_context(self.backend)
        logits = self.head.logits(out.flatten(0, 1), bare).float().log_softmax(-1)
        best = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1)
        shape = (*out.shape[:2], -1)
        return Candidates(self.head.target_ids(best.indices).view(shape), best.values.view(shape))

    def step(self, frontier: Frontier) -> Candidates:
        """Run the frontier's nodes and return what may follow each."""
        assert self.out is not None, "the root's candidates come first"
        ctx = self.context(frontier)
        index = frontier.parents.unsqueeze(2).expand(-1, -1, self.out.shape[2])
        before = self.out.gather(1, index).flatten(0, 1)
        out = self.head(frontier.token_ids.flatten(), self.head.carry(before, ctx), ctx)
        return self.candidates(out.view(*frontier.token_ids.shape, -1))

    @abstractmethod
    def context(self, frontier: Frontier) -> ForwardContext:
        """Return a context for the frontier's nodes, each of which sees what leads to it."""


class _MaskedGrower(Grower):
    """Every node lies in its row's cache, and masks say who sees whom."""

    def __init__(
        self, head: SequentialHead, top_k: int, backend: Backend, cache: HeadCache, rows: list[int]
    ) -> None:
        super().__init__(head, top_k, backend)
        self.cache, self.rows = cache, rows
        self.ancestors: Tensor | None = None  # of the latest frontier, [R, m, nodes so far]

    def context(self, frontier: Frontier) -> ForwardContext:
        """Return a context for the frontier's nodes, behind all that were before."""
        num_rows, num_new = frontier.token_ids.shape
        own = torch.eye(num_new, dtype=torch.bool).expand(num_rows, -1, -1)
        if self.ancestors is None:
            self.ancestors = own
        else:
            index = frontier.parents.cpu().unsqueeze(2).expand(-1, -1, self.ancestors.shape[2])
            self.ancestors = torch.cat((self.ancestors.gather(1, index), own), dim=2)
        return self.cache.branch(self.rows, self.ancestors, frontier.depth, self.backend)
