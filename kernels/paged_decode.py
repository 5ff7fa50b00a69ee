"""Attention of one new token per sequence over the paged cache, split over the context.

Memory-bound: the least traffic is every key and value once. A program takes one KV head of one
sequence over a part of its context, and all query heads of that KV head, padded to a tensor-core
tile of 16. With more than one split, parts are merged by a second kernel; 8-bit caches have a
kernel of their own (`paged_decode_bytes`). The grid depends on the
capacities (rows, heads, splits) alone; lengths are read on the device, so that a captured graph
stays right for any lengths. A length of 0 gives zeros.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.attention_math import LOG2E
from workbench.kernels.early import await_previous, starts_early
from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, power_of_2, sm_count
from workbench.kernels.paged_decode_bytes import paged_decode_bytes_kernel
from workbench.kernels.paged_decode_splits import (
    choose_splits,
    finish,
    merge_splits_kernel,
    shaped,
    split_span,
)
from workbench.kernels.quantised_kv import LARGEST, QUANTISED
from workbench.kernels.spec import check_limits

LIMITS = {"head_dim": (1, 256), "group": (1, 64), "block_size": (1, 1024)}


@triton.jit
def _fold(score, v, acc, norm, peak, SWAP: tl.constexpr):
    """Add the keys of one tile to the running softmax; see the kernel for the shapes."""
    keys: tl.constexpr = 0 if SWAP else 1
    higher = tl.maximum(peak, tl.max(score, axis=keys))
    weight = tl.exp2(score - tl.expand_dims(higher, keys))
    shrink = tl.exp2(peak - higher)
    norm = norm * shrink + tl.sum(weight, axis=keys)
    acc = acc * tl.expand_dims(shrink, keys)
    if SWAP:
        acc = tl.dot(tl.trans(v), weight.to(v.dtype), acc, input_precision="ieee")
    else:
        acc = tl.dot(weight.to(v.dtype), v, acc, input_precision="ieee")
    return acc, norm, higher


@triton.jit(do_not_specialize=["num_splits", "window"])
def paged_decode_kernel(
    q, kv, tables, context_lens, sinks, alibi, out, partial, partial_lse,
    q_stride, side_stride, table_stride, num_splits, window, scale, cap,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
    EARLY: tl.constexpr,
    TILE_G: tl.constexpr, TILE_D: tl.constexpr,
    BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Attend from G query heads of one KV head over one split of one row's context."""
    await_previous(EARLY)
    head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    ALIBI: tl.constexpr = alibi is not None
    first, length, tokens = split_span(context_lens, row, window, num_splits, WINDOWED, MIN_SPLIT)
    begin = first + split * tokens
    end = tl.minimum(begin + tokens, length)
    if SPLIT and begin >= end:
        return
    group, d, key = tl.arange(0, TILE_G), tl.arange(0, TILE_D), tl.arange(0, BLOCK_N)
    heads = head * G + group
    own = (group < G)[:, None] & (d < D)[None, :]
    queries = tl.load(q + row * q_stride + heads[:, None] * D + d[None, :], mask=own, other=0.0)
    slope = tl.load(alibi + heads, mask=group < G, other=0.0) if ALIBI else 0.0
    factor = scale if CAPPED or ALIBI else scale * LOG2E
    queries = queries.to(tl.float32) if UPCAST else queries
    acc = tl.zeros([TILE_D, TILE_G] if SWAP else [TILE_G, TILE_D], tl.float32)
    norm = tl.zeros([TILE_G], tl.float32)
    peak = tl.full([TILE_G], float("-inf"), tl.float32)
    for start in range(begin, end, BLOCK_N):
        position = start + key
        valid = position < end
        block = tl.load(tables + row * table_stride + position // BLOCK_SIZE, mask=valid, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        source = kv + (slot * K + head)[:, None] * D + d[None, :]
        wanted = valid[:, None] & (d < D)[None, :]
        # Slots past the end are a stranger's: zero, as a weight of 0 times NaN is NaN.
        k = tl.load(source, mask=wanted, other=0.0).to(queries.dtype)
        v = tl.load(source + side_stride, mask=wanted, other=0.0).to(queries.dtype)
        away = (length - 1 - position).to(tl.float32)
        if SWAP:
            score = tl.dot(k, tl.trans(queries), input_precision="ieee")
        else:
            score = tl.dot(queries, tl.trans(k), input_precision="ieee")
        score = shaped(score, factor, cap, slope, away, SWAP, CAPPED, ALIBI)
        score = tl.where(valid[:, None] if SWAP else valid[None, :], score, float("-inf"))
        acc, norm, peak = _fold(score, v, acc, norm, peak, SWAP)
    finish(acc, norm, peak, sinks, out, partial, partial_lse, row, split, num_splits,
            head, heads, group, d, K, G, D, SPLIT, SWAP)  # fmt: skip


def default(q: Tensor, kv: Tensor, **_: Any) -> Config:
    """Return 64 keys a step, keys as the tile's rows (SWAP) where halves allow it.

    An 8-bit cache takes one warp: it shares no tile with others, and many programs fit.
    """
    wide = power_of_2(kv.shape[4]) * kv.element_size() > 256
    halves = kv.element_size() == 2 and q.element_size() == 2
    packed = kv.dtype in QUANTISED
    return {
        "BLOCK_N": 32 if wide or packed else 64,
        "MIN_SPLIT": 64,
        "SWAP": int(halves and not wide),
        "num_warps": 1 if packed else 4,
        "num_stages": 5 if packed else 3,
    }


def plan(
    q: Tensor,
    kv: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    kv_scales: Tensor | None = None,
    num_splits: int | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Plan:
    """Plan attention from q [S, H, D] over kv [2, blocks, block_size, K, D]; returns [S, H, D].

    block_tables [S, B] and context_lens [S] int32; a length counts the new token, whose key is
    already in the cache. num_splits None: for a table's capacity. kv_scales [2, blocks, K,
    block_size] float32 for an int8 or fp8 cache. Other arguments as of `attention_math.attend`.
    """
    rows, heads, dim = q.shape
    block_size, kv_heads = kv.shape[2:4]
    group, packed = heads // kv_heads, kv.dtype in QUANTISED
    check_limits("paged_decode", LIMITS, head_dim=dim, group=group, block_size=block_size)
    assert q[:1].is_contiguous(), "the heads of a token are adjacent"
    assert kv.is_contiguous(), "a layer's cache is one piece"
    assert packed == (kv_scales is not None), "an 8-bit cache has scales, no other has"
    config = config or default(q, kv)
    if num_splits is None:
        capacity = block_tables.shape[1] * block_size
        num_splits = choose_splits(rows, kv_heads, capacity, rows * capacity, sm_count(q.device))
    if out is None:
        out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device)
    split = num_splits > 1
    shared = {
        "context_lens": context_lens, "sinks": sinks, "out": out, "num_splits": num_splits,
        "window": window or 0, "WINDOWED": window is not None, "EARLY": starts_early(q.device),
        "partial": torch.empty((rows, heads, num_splits, dim), device=q.device) if split else None,
        "partial_lse": torch.empty((rows, heads, num_splits), device=q.device) if split else None,
        "D": dim, "TILE_D": max(32 if packed else 16, power_of_2(dim)),
    }  # fmt: skip
    arguments = shared | {
        "q": q, "kv": kv, "tables": block_tables, "alibi": alibi, "q_stride": q.stride(0),
        "side_stride": kv.stride(0), "table_stride": block_tables.stride(0), "scale": scale,
        "cap": soft_cap or 0.0, "CAPPED": soft_cap is not None, "K": kv_heads, "G": group,
        "TILE_G": max(16, power_of_2(group)), "BLOCK_SIZE": block_size,
        "SPLIT": split, "UPCAST": INTERPRETED,
    }  # fmt: skip
    if not rows:
        return Plan((), out)
    kernel: Any = paged_decode_bytes_kernel if packed else paged_decode_kernel
    arguments |= {} if kv_scales is None else _words(kv, kv_scales)
    launches = [Launch(kernel, (kv_heads, rows, num_splits), arguments, config)]
    if split:
        merge = shared | {"H": heads, "TILE_S": power_of_2(num_splits)}
        merging = {"MIN_SPLIT": config["MIN_SPLIT"], "num_warps": 4}
        launches.append(Launch(merge_splits_kernel, (heads, rows), merge, merging))
    return Plan(tuple(launches), out)


def _words(kv: Tensor, kv_scales: Tensor) -> dict[str, Any]:
    """Return an 8-bit cache as the bytes kernel takes it: two values a word."""
    assert kv.shape[4] % 2 == 0, "two values make a word"
    return {
        "kv": kv.view(torch.int16), "side_stride": kv.stride(0) // 2, "scales": kv_scales,
        "scale_stride": kv_scales.stride(0), "INT8": kv.dtype == torch.int8,
        "LARGEST": LARGEST[kv.dtype],
    }  # fmt: skip
