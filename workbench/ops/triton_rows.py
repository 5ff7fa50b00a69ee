"""A step's rows as the Triton kernels take them: decodes, trees and chunks.

Everything here comes from lengths that the host knows, so that no call waits for the GPU. Used by
`workbench.ops.triton`, once a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from workbench.batch import ForwardContext


@dataclass(slots=True)
class Rows:
    """Some rows of a batch, as the attention kernels take them; None where there is no cache.

    They are packed from token `first` on; lens: how many new tokens each has; kv_lens: how many
    it sees, with them.
    """

    query_starts: Tensor | None
    context_lens: Tensor | None
    block_tables: Tensor | None
    first: int
    lens: list[int]
    num_tokens: int
    kv_lens: list[int]


@dataclass(slots=True)
class Prepared:
    """num_decodes rows go to the decode kernel in num_splits parts; then come trees, then chunks.

    splits: parts that the keys of trees and chunks are cut into. fresh: no chunk has an older
    context, so its keys are the new tokens' own. ancestors [T, W]: the trees' masks at their packed
    positions; None where there are no trees.
    """

    num_decodes: int
    num_splits: int
    decodes: Rows
    trees: Rows
    chunks: Rows
    splits: int
    fresh: bool
    ancestors: Tensor | None


def split_rows(ctx: ForwardContext, num_splits: int, splits: int) -> Prepared:
    """Return a batch's decodes, trees and chunks, in that order, and how they are cut."""
    cached = ctx.kv is not None
    decodes = ctx.num_decodes if cached else 0
    first, ancestors = decodes, None
    if ctx.trees is not None:
        first = decodes + ctx.trees.num_rows
        ancestors = ctx.trees.ancestors  # itself where nothing precedes: a graph reads it there
        ancestors = F.pad(ancestors, (0, 0, decodes, 0)) if decodes else ancestors
    chunk_lens = ctx.query_lens[first:]
    fresh = not cached or chunk_lens == ctx.kv_lens[first:]
    return Prepared(
        decodes,
        num_splits,
        _rows(ctx, slice(0, decodes)),
        _rows(ctx, slice(decodes, first)),
        _rows(ctx, slice(first, None)),
        splits,
        fresh,
        ancestors,
    )


def _rows(ctx: ForwardContext, rows: slice) -> Rows:
    """Return the kernels' view of some rows."""
    new = ctx.query_lens[rows]
    starts, lens = _aligned(ctx.query_starts, slice(rows.start, None)), ctx.context_lens
    return Rows(
        starts,
        _aligned(lens, rows),
        _aligned(ctx.block_tables, rows),
        sum(ctx.query_lens[: rows.start]),
        new,
        sum(new),
        ctx.kv_lens[rows],
    )


def _aligned(whole: Tensor | None, rows: slice) -> Tensor | None:
    """Return some rows of a tensor, copied where their address is one that kernels would be
    compiled anew for: that takes seconds, in the middle of a step."""
    part = None if whole is None else whole[rows]
    return part if part is None or part.data_ptr() % 16 == 0 else part.clone()
