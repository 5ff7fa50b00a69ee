"""The online softmax of `prefill_attention` over tiles of keys: scores, masks, and the running sum.

Called with bounds that say which tiles every query sees, so that only the others are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.attention_math import LOG2E, soft_capped
from workbench.kernels.prefill_tiles import load_tile, token_scales


@triton.jit
def scores(q, k, key_scales, factor, cap, slope, own, key, end, window, old, ancestors, word_row,
            CAPPED: tl.constexpr, ALIBI: tl.constexpr, WINDOWED: tl.constexpr,
            TREE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Return (score, unit): exp2(score * unit) is the softmax's exponential; -inf: not seen."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee")
    if key_scales is not None:
        score = score * key_scales[None, :]
    unit = factor
    if CAPPED or ALIBI:
        score = score * factor
        unit = LOG2E
    if CAPPED:
        score = soft_capped(score, cap)
    if ALIBI:
        score = score - slope[:, None] * tl.abs(own[:, None] - key[None, :]).to(tl.float32)
    if MASKED:
        if TREE:
            new = tl.maximum(key - old, 0)
            is_new = (key >= old) & (key < end)
            words = tl.load(
                ancestors + word_row[:, None] + new[None, :] // 32, mask=is_new[None, :], other=-1
            )
            seen = (((words >> (new[None, :] % 32)) & 1) != 0) & (key < end)[None, :]
        else:
            seen = (key[None, :] <= own[:, None]) & (key < end)[None, :]
        if WINDOWED:
            seen = seen & (key[None, :] > own[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
    return score, unit


@triton.jit
def fold_tiles(acc, norm, peak, q, k, v, scales, scale_stride, table, first_row, low, high, head,
            first, end, own, slope, factor, cap, window, old, ancestors, word_row, k_stride,
            v_stride,
            K: tl.constexpr, D: tl.constexpr, TILE_D: tl.constexpr, BLOCK_N: tl.constexpr,
            BLOCK_SIZE: tl.constexpr, PAGED: tl.constexpr, TMA: tl.constexpr,
            LARGEST: tl.constexpr, CAPPED: tl.constexpr, ALIBI: tl.constexpr,
            WINDOWED: tl.constexpr, TREE: tl.constexpr, SPLIT: tl.constexpr,
            MASKED: tl.constexpr):  # fmt: skip
    """Run the online softmax over the key tiles from `low` to `high`."""
    d = tl.arange(0, TILE_D)
    for start in range(low, high, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        keys = load_tile(k, table, first_row, start, d, head, first, end, k_stride, K, D, TILE_D,
                     BLOCK_N, BLOCK_SIZE, PAGED, TMA, MASKED).to(q.dtype)  # fmt: skip
        key_scales = None
        if scales is not None:
            key_scales = token_scales(scales, table, start, head, first, end, K, BLOCK_N,
                                       BLOCK_SIZE)  # fmt: skip
        score, unit = scores(q, keys, key_scales, factor, cap, slope, own, key, end, window, old,
                              ancestors, word_row, CAPPED, ALIBI, WINDOWED, TREE,
                              MASKED)  # fmt: skip
        higher = tl.maximum(peak, tl.max(score, axis=1) * unit)
        floor = higher
        if MASKED and (WINDOWED or TREE or SPLIT):  # nothing seen yet: no peak to subtract
            floor = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score * unit - floor[:, None])
        shrink = tl.exp2(peak - floor)
        norm = norm * shrink + tl.sum(weight, axis=1)
        acc = acc * shrink[:, None]
        if scales is not None:  # times LARGEST: as large as the values, far from a half's smallest
            value_scales = token_scales(scales + scale_stride, table, start, head, first, end, K,
                                         BLOCK_N, BLOCK_SIZE)  # fmt: skip
            weight = weight * (value_scales * LARGEST)[None, :]
        values = load_tile(v, table, first_row, start, d, head, first, end, v_stride, K, D, TILE_D,
                       BLOCK_N, BLOCK_SIZE, PAGED, TMA, MASKED).to(q.dtype)  # fmt: skip
        acc = tl.dot(weight.to(q.dtype), values, acc, input_precision="ieee")
        peak = higher
    return acc, norm, peak
