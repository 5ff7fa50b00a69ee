"""Drafting in passes of one shape: what is new of each row goes in, then a chain or a tree grows.

What `heads.drive` does step by step, with every length read on the device, so that nothing waits
for the host. A row of the head's cache is looked at as a run of blocks: attention is the backend's
own. A node of a tree sees what leads to it and nothing else, because it is a row of its own whose
table shares the committed blocks; behind them it has a copy of the path to it (its tail). Used by
`fixed_drafter`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.batch import Backend, ForwardContext
from workbench.speculation.heads import SequentialHead, TreeShape
from workbench.speculation.heads.attention import bare_context
from workbench.speculation.heads.cache import BLOCK, blocks_of
from workbench.speculation.heads.drive import Grower
from workbench.speculation.heads.dynamic_tree import Frontier, grow
from workbench.speculation.heads.tree import DraftTree


class Inputs(NamedTuple):
    """What is new of R rows, at most W pairs of each, at fixed addresses.

    token_ids [R, W]; states [R, W, width]; columns [4, R] int64: which row of the cache, how many
    pairs it holds, how many are new, and how deep its draft may be.
    """

    token_ids: Tensor
    states: Tensor
    columns: Tensor

    @property
    def rows(self) -> Tensor:
        """Rows of the cache [R]."""
        return self.columns[0]

    @property
    def lens(self) -> Tensor:
        """Pairs that were in them before [R]."""
        return self.columns[1]

    @property
    def counts(self) -> Tensor:
        """New pairs of each [R]."""
        return self.columns[2]

    @property
    def depths(self) -> Tensor:
        """How deep their drafts may be [R]."""
        return self.columns[3]


class PagedRows:
    """Rows of a `HeadCache` as runs of blocks, and contexts over them.

    kv [layers, 2, rows, max_len, K, D]. lens: how many slots of each row were taken before, and are
    with what is new, as far as the host knows; None: any number that there is room for.
    """

    def __init__(
        self, kv: Tensor, backend: Backend, lens: tuple[list[int], list[int]] | None
    ) -> None:
        self.backend, self.max_len = backend, kv.shape[3]
        self.before: list[int] | None
        self.after: list[int] | None
        self.before, self.after = (None, None) if lens is None else lens
        self.per_row = self.max_len // BLOCK
        self.layers = blocks_of(kv)
        self.num_blocks = kv.shape[2] * self.per_row
        self.columns = torch.arange(self.per_row, device=kv.device)

    def context(
        self, tables: Tensor, positions: Tensor, lens: list[int] | None, more: int
    ) -> ForwardContext:
        """Return a context for tokens at positions [S, n] of rows with tables [S, B].

        With them `more` slots than lens are taken of each row, as far as the host knows.
        """
        rows, count = positions.shape
        slots = tables.gather(1, positions // BLOCK) * BLOCK + positions % BLOCK
        whole = [self.max_len] * rows
        starts = torch.arange(0, rows * count + 1, count, dtype=torch.int32, device=slots.device)
        ctx = ForwardContext(
            self.backend,
            positions.flatten(),
            query_lens=[count] * rows,
            kv_lens=whole if lens is None else [length + more for length in lens],
            num_decodes=rows if count == 1 else 0,
            query_starts=starts,
            context_lens=(positions[:, -1] + 1).to(torch.int32),
            slot_mapping=slots.flatten(),
            block_tables=tables.to(torch.int32),
            kv=self.layers,
        )
        ctx.prepared = self.backend.prepare(ctx)
        return ctx


def draft(head: SequentialHead, shape: TreeShape, inputs: Inputs, paged: PagedRows) -> DraftTree:
    """Write what is new and return what is drafted behind it; parents [R, N] too."""
    size, width = inputs.token_ids.shape
    tables = inputs.rows.unsqueeze(1) * paged.per_row + paged.columns
    places = torch.arange(width, device=tables.device)
    # Padding lies behind what is new: it is overwritten, and nobody looks at it.
    ctx = paged.context(tables, inputs.lens.unsqueeze(1) + places, paged.before, width)
    features = head.features(inputs.states.flatten(0, 1), ctx)
    outs = head(inputs.token_ids.flatten(), features, ctx).view(size, width, -1)
    last = (inputs.counts - 1).view(size, 1, 1).expand(-1, -1, outs.shape[2])
    out = outs.gather(1, last)
    if shape.top_k == 1:
        return _chain(head, shape.depth, out[:, 0], tables, inputs, paged)
    grower = _TailGrower(head, shape, tables, inputs, paged)
    return grow(grower.candidates(out), grower.step, shape, inputs.depths)


def _chain(
    head: SequentialHead, length: int, out: Tensor, tables: Tensor, inputs: Inputs, paged: PagedRows
) -> DraftTree:
    tokens, logprobs = [], []
    bare = bare_context(paged.backend)
    for ahead in range(length):
        logits = head.logits(out, bare).float()
        best = logits.argmax(-1, keepdim=True)
        tokens.append(head.target_ids(best[:, 0]))
        logprobs.append((logits.gather(1, best) - logits.logsumexp(1, keepdim=True))[:, 0])
        if ahead < length - 1:
            positions = (inputs.lens + inputs.counts + ahead).unsqueeze(1)
            ctx = paged.context(tables, positions, paged.after, ahead + 1)
            out = head(tokens[-1], head.carry(out, ctx), ctx)
    token_ids = torch.stack(tokens, 1)
    parents = torch.arange(-1, length - 1, device=out.device).expand_as(token_ids)
    return DraftTree(token_ids, parents, torch.stack(logprobs, 1).double().cumsum(1))


def tail_blocks(shape: TreeShape) -> int:
    """Return how many blocks a node has of its own: the last committed one's copy, and its path."""
    return 0 if shape.top_k == 1 else -(-(BLOCK - 2 + shape.depth) // BLOCK)


class _TailGrower(Grower):
    """The frontier's nodes are rows of their own; their tails are the cache's last blocks."""

    def __init__(
        self,
        head: SequentialHead,
        shape: TreeShape,
        tables: Tensor,
        inputs: Inputs,
        paged: PagedRows,
    ) -> None:
        super().__init__(head, shape.top_k, paged.backend)
        self.paged, self.tables = paged, tables.unsqueeze(1)  # [R, 1, B]
        self.lens = inputs.lens + inputs.counts
        self.begin = (self.lens // BLOCK).view(-1, 1, 1)  # the block that tails begin with
        self.per = tail_blocks(shape)
        size = len(tables)
        first = paged.num_blocks - size * shape.top_k * self.per
        places = torch.arange(size * shape.top_k, device=tables.device).view(size, shape.top_k)
        self.tails = first + self.per * places  # [R, top_k]: the first block of each

    def context(self, frontier: Frontier) -> ForwardContext:
        """Return a context for the frontier's nodes, whose tails are made of their parents'."""
        count = frontier.token_ids.shape[1]
        tails = self.tails[:, :count, None]
        within = torch.arange(self.per, device=tails.device)
        if frontier.depth == 1:  # of the last committed block
            before = self.tables.gather(2, self.begin).expand(-1, count, -1)
            within = within[:1]
        else:
            before = self.tails.gather(1, frontier.parents).unsqueeze(2)
        sources, targets = (before + within).flatten(), (tails + within).flatten()
        for layer in self.paged.layers:
            layer.index_copy_(1, targets, layer.index_select(1, sources))
        place = self.paged.columns - self.begin  # [R, 1, B]: which of a tail's blocks a column is
        own = tails + place.clamp(0, self.per - 1)
        tables = torch.where(place >= 0, own, self.tables).flatten(0, 1)
        positions = (self.lens + frontier.depth - 1).view(-1, 1, 1).expand(-1, count, 1)
        lens = self.paged.after and [n for n in self.paged.after for _ in range(count)]
        return self.paged.context(tables, positions.flatten(0, 1), lens, frontier.depth)
