"""The steps of one warpgroup of `prefill_hopper`: 64 query rows against a tile of N keys.

A head is held as halves of 64 columns, which is what one swizzled row of shared memory takes.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit
def softmax(score, norm, peak, unit, own, start, end, N: gl.constexpr, MASKED: gl.constexpr):
    """Return (weights, shrink of what was summed, norm, peak) after one tile of scores."""
    LAYOUT: gl.constexpr = score.type.layout
    if MASKED:
        key = start + gl.arange(0, N, gl.SliceLayout(0, LAYOUT))
        seen = (key[None, :] <= own[:, None]) & (key < end)[None, :]
        score = gl.where(seen, score, float("-inf"))
    higher = gl.maximum(peak, gl.max(score, axis=1) * unit)
    floor = higher
    if MASKED:  # nothing seen yet: no peak to subtract
        floor = gl.where(higher == float("-inf"), 0.0, higher)
    weight = gl.exp2(score * unit - floor[:, None])
    shrink = gl.exp2(peak - floor)
    return weight, shrink, norm * shrink + gl.sum(weight, axis=1), higher


@gluon.jit
def issue_scores(queries, keys, group, stage, N: gl.constexpr, HALVES: gl.constexpr):
    """Issue the product of a warpgroup's queries [64, D] with a tile of keys [N, D]."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    score = gl.zeros([64, N], gl.float32, LAYOUT)
    score = warpgroup_mma(queries.index(group * HALVES), keys.index(stage * HALVES).permute((1, 0)),
                          score, use_acc=False, is_async=True)  # fmt: skip
    if HALVES == 2:
        second = keys.index(stage * HALVES + 1).permute((1, 0))
        score = warpgroup_mma(queries.index(group * HALVES + 1), second, score, is_async=True)
    return score


@gluon.jit
def issue_mix(weight, values, stage, acc, more, HALVES: gl.constexpr):
    """Issue the product of weights [64, N] with a tile of values, added to both halves of acc."""
    acc = warpgroup_mma(weight, values.index(stage * HALVES), acc, is_async=True)
    if HALVES == 2:
        more = warpgroup_mma(weight, values.index(stage * HALVES + 1), more, is_async=True)
    return acc, more


@gluon.jit
def await_mix(acc, more, HALVES: gl.constexpr):
    """Wait for what `issue_mix` issued."""
    if HALVES == 2:
        acc, more = warpgroup_mma_wait(0, deps=[acc, more])
    else:
        acc = warpgroup_mma_wait(0, deps=[acc])
    return acc, more


@gluon.jit
def load_queries(q, queries, group, first_token, num_new, tile, head, q_stride,
                  G: gl.constexpr, D: gl.constexpr, BLOCK_Q: gl.constexpr):  # fmt: skip
    """Bring a warpgroup's 64 query rows to shared memory, zeros where there is no token."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    m = group * 64 + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
    d = gl.arange(0, 64, gl.SliceLayout(0, LAYOUT))
    new = tile * BLOCK_Q + m // G
    inside = ((m // G < BLOCK_Q) & (new < num_new))[:, None] & (d < 64)[None, :]
    rows = (first_token + new).to(gl.int64) * q_stride + (head * G + m % G) * D
    for half in gl.static_range(D // 64):
        part = gl.load(q + rows[:, None] + (d + half * 64)[None, :], mask=inside, other=0.0)
        queries.index(group * (D // 64) + half).store(part)
    fence_async_shared()


@gluon.jit
def clear_tail(values, stage, known, N: gl.constexpr, HALVES: gl.constexpr):
    """Zero the values from row `known` on: a stranger's, and a weight of 0 times NaN is NaN.

    Both warpgroups do it, and write the same.
    """
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    for half in gl.static_range(HALVES):
        tile = values.index(stage * HALVES + half)
        kept = tile.load(LAYOUT)
        tile.store(gl.where((row < known)[:, None], kept, 0.0).to(kept.dtype))
    fence_async_shared()


@gluon.jit
def store_half(out, acc, norm, half, group, first_token, num_new, tile, head,
           G: gl.constexpr, K: gl.constexpr, D: gl.constexpr, BLOCK_Q: gl.constexpr):  # fmt: skip
    """Store one half of a warpgroup's outputs."""
    LAYOUT: gl.constexpr = acc.type.layout
    m = group * 64 + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
    d = gl.arange(0, 64, gl.SliceLayout(0, LAYOUT)) + half * 64
    new = tile * BLOCK_Q + m // G
    inside = ((m // G < BLOCK_Q) & (new < num_new))[:, None] & (d < D)[None, :]
    rows = ((first_token + new).to(gl.int64) * K * G + head * G + m % G) * D
    total = gl.convert_layout(gl.where(norm > 0.0, norm, 1.0), gl.SliceLayout(1, LAYOUT))
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    gl.store(out + rows[:, None] + d[None, :], result, mask=inside)
