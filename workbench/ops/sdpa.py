"""The backend over torch's `scaled_dot_product_attention`, for CPU and CUDA.

Decode rows (one new token) run as few batches of similar length, each gathered from the cache into
a padded tensor; the other rows run one by one. Indices and masks are worked out once a step and
shared by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.ops.paging import gather, write
from workbench.ops.reference import ReferenceBackend, row_mask

# Rows whose context is within this factor of the group's shortest share a padded batch: a larger
# factor pads (copies) more, a smaller one makes more calls.
_LENGTH_RATIO = 1.3
_MIN_SPREAD_BLOCKS = 4


@dataclass(slots=True)
class _DecodeGroup:
    """Decode rows of similar length. rows: [S] or None for all decode rows, in order."""

    rows: Tensor | None
    block_ids: Tensor  # [S, B]
    length: int  # keys kept of B * block_size
    padding: Tensor | None  # gathered slots (row * B * block_size + key) beyond a row's context
    mask: dict[int | None, Tensor | None]  # window -> [S, 1, 1, length] bool, None: see everything


@dataclass(slots=True)
class _Chunk:
    """A row with more than one new token."""

    row: int
    tokens: slice
    block_ids: Tensor | None  # [1, B]; None without a cache
    length: int
    tree: bool  # whether its tokens do not all see those before them
    mask: dict[int | None, Tensor]  # window -> [new, length] bool


@dataclass(slots=True)
class _Prepared:
    decodes: list[_DecodeGroup]
    chunks: list[_Chunk]


class SDPABackend(ReferenceBackend):
    """`Backend` whose attention and norm are torch's fused ones."""

    name = "sdpa"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._scratch: Tensor | None = None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x over its root mean square, times weight."""
        if x.device.type == "cpu":  # the fused one is composed of more, slower pieces there
            return super().rms_norm(x, weight, eps)
        return F.rms_norm(x, weight.shape, weight, eps)

    def prepare(self, ctx: ForwardContext) -> _Prepared:
        """Group the decode rows by length and lay out the other rows."""
        num_decodes = ctx.num_decodes if ctx.kv is not None else 0
        chunks, start = [], num_decodes
        for row in range(num_decodes, len(ctx.query_lens)):
            stop = start + ctx.query_lens[row]
            block_ids = None
            if ctx.kv is not None:
                assert ctx.block_tables is not None, "a context with a cache has block tables"
                num_blocks = -(-ctx.kv_lens[row] // ctx.any_kv.shape[2])
                block_ids = ctx.block_tables[row : row + 1, :num_blocks]
            trees = ctx.trees
            tree = trees is not None and row < trees.first_row + trees.num_rows
            chunks.append(_Chunk(row, slice(start, stop), block_ids, ctx.kv_lens[row], tree, {}))
            start = stop
        return _Prepared(self._decode_groups(ctx) if num_decodes else [], chunks)

    def _decode_groups(self, ctx: ForwardContext) -> list[_DecodeGroup]:
        assert ctx.kv is not None
        assert ctx.block_tables is not None, "a context with a cache has block tables"
        block_size = ctx.any_kv.shape[2]
        lengths = ctx.kv_lens[: ctx.num_decodes]
        spread = _MIN_SPREAD_BLOCKS * block_size
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        groups, begin = [], 0
        for end in range(1, len(order) + 1):
            shortest = lengths[order[begin]]
            limit = max(shortest * _LENGTH_RATIO, shortest + spread)
            if end == len(order) or lengths[order[end]] > limit:
                groups.append(order[begin:end])
                begin = end
        return [self._decode_group(ctx, sorted(rows), block_size) for rows in groups]

    def _decode_group(self, ctx: ForwardContext, rows: list[int], block_size: int) -> _DecodeGroup:
        assert ctx.block_tables is not None, "a context with a cache has block tables"
        length = max(ctx.kv_lens[row] for row in rows)
        num_blocks = -(-length // block_size)
        if len(rows) == ctx.num_decodes:
            index = None
            block_ids = ctx.block_tables[: ctx.num_decodes, :num_blocks]
        else:
            index = torch.tensor(rows, device=self.device)
            block_ids = ctx.block_tables[index, :num_blocks]
        padding = self._padding([ctx.kv_lens[row] for row in rows], length, num_blocks * block_size)
        group = _DecodeGroup(index, block_ids.contiguous(), length, padding, {})
        if padding is None:
            group.mask[None] = None
        return group

    def _padding(self, lengths: list[int], longest: int, width: int) -> Tensor | None:
        """Return which of [S * width] gathered slots lie in a row's padding; None if none does."""
        if min(lengths) == longest:
            return None
        keys = torch.arange(width)
        slots = (keys >= torch.tensor(lengths).unsqueeze(1)) & (keys < longest)
        return slots.view(-1).nonzero()[:, 0].to(self.device, non_blocking=True)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        ctx: ForwardContext,
        *,
        scale: float,
        rope: tuple[Tensor, Tensor] | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Write k, v to the cache (if any) and attend; see `Backend.attention`."""
        if rope is not None:
            q, k = self.rope(q, k, *rope)
        prepared: _Prepared = ctx.prepared
        kv = None
        if ctx.kv is not None:
            assert ctx.slot_mapping is not None, "a context with a cache has slots"
            kv = ctx.kv[layer]
            write(kv, ctx.slot_mapping, k, v, ctx.scales(layer))
        whole = None if kv is None else self._one_group(prepared, q)
        if whole is not None:
            return self._decode(whole, q, layer, ctx, scale, window)
        out = torch.empty_like(q)
        for group in prepared.decodes:
            queries = q[: ctx.num_decodes] if group.rows is None else q[group.rows]
            result = self._decode(group, queries, layer, ctx, scale, window)
            if group.rows is None:
                out[: ctx.num_decodes] = result
            else:
                out.index_copy_(0, group.rows, result)
        for chunk in prepared.chunks:
            out[chunk.tokens] = self._chunk(chunk, q, k, v, layer, ctx, scale, window)
        return out

    def _one_group(self, prepared: _Prepared, q: Tensor) -> _DecodeGroup | None:
        """Return the only group if the batch is all decodes of similar length, else None."""
        if prepared.chunks or len(prepared.decodes) != 1:
            return None
        return prepared.decodes[0]

    def _decode(
        self,
        group: _DecodeGroup,
        q: Tensor,
        layer: int,
        ctx: ForwardContext,
        scale: float,
        window: int | None,
    ) -> Tensor:
        rows, heads, dim = q.shape
        keys, values = self._gathered(group.block_ids, layer, ctx)
        if group.padding is not None:
            # What lies there is a stranger's. A mask gives it weight 0, but 0 times NaN is NaN.
            for side in (keys, values):
                side.flatten(0, 1).index_fill_(0, group.padding, 0)
        kv_heads = keys.shape[2]
        # Query heads that share a key head become that head's queries, so keys are not repeated.
        queries = q.view(rows, kv_heads, heads // kv_heads, dim)
        out = F.scaled_dot_product_attention(
            queries,
            keys[:, : group.length].transpose(1, 2).to(q.dtype),
            values[:, : group.length].transpose(1, 2).to(q.dtype),
            attn_mask=self._decode_mask(group, ctx, window),
            scale=scale,
        )
        return out.reshape(rows, heads, dim)

    def _decode_mask(
        self, group: _DecodeGroup, ctx: ForwardContext, window: int | None
    ) -> Tensor | None:
        if window is not None and window >= group.length:
            window = None
        if window not in group.mask:
            assert ctx.context_lens is not None, "a context with a cache has context lengths"
            lens = (
                ctx.context_lens[: ctx.num_decodes]
                if group.rows is None
                else (ctx.context_lens[group.rows])
            )
            keys = torch.arange(group.length, device=self.device)
            mask = keys < lens.unsqueeze(1)
            if window is not None:
                mask &= keys >= (lens - window).unsqueeze(1)
            group.mask[window] = mask[:, None, None, :]
        return group.mask[window]

    def _chunk(
        self,
        chunk: _Chunk,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        ctx: ForwardContext,
        scale: float,
        window: int | None,
    ) -> Tensor:
        queries = q[chunk.tokens]
        num_new = queries.shape[0]
        # Nothing but the new tokens: no need to gather, unless what is cached is not what they say.
        if ctx.kv is None or (chunk.length == num_new and ctx.kv_scales is None):
            keys, values = k[chunk.tokens], v[chunk.tokens]
        else:
            assert chunk.block_ids is not None
            gathered = self._gathered(chunk.block_ids, layer, ctx)
            keys, values = (side[0, : chunk.length].to(q.dtype) for side in gathered)
        if window is not None and window >= chunk.length:
            window = None
        plain = window is None and chunk.length == num_new and not chunk.tree
        if not plain and window not in chunk.mask:
            chunk.mask[window] = row_mask(ctx, chunk.row, window)
        mask = None if plain else chunk.mask[window]
        out = F.scaled_dot_product_attention(
            queries.transpose(0, 1).unsqueeze(0),
            keys.transpose(0, 1).unsqueeze(0),
            values.transpose(0, 1).unsqueeze(0),
            attn_mask=mask,
            is_causal=plain,
            scale=scale,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

    def _gathered(
        self, block_ids: Tensor, layer: int, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of blocks [S, B]; they stay as they are until the next call."""
        assert ctx.kv is not None, "what is gathered is in a cache"
        kv, scales = ctx.kv[layer], ctx.scales(layer)
        scratch = None if scales is not None else self._scratch_for(kv, block_ids.numel())
        return gather(kv, block_ids, scratch, scales)

    def _scratch_for(self, kv: Tensor, num_blocks: int) -> Tensor:
        """Return a [2, n] buffer that holds `num_blocks` gathered blocks; reused over layers."""
        needed = num_blocks * kv[0, 0].numel()
        if (
            self._scratch is None
            or self._scratch.shape[1] < needed
            or self._scratch.dtype != kv.dtype
        ):
            self._scratch = torch.empty(2, needed + needed // 4, dtype=kv.dtype, device=kv.device)
        return self._scratch
