"""Attention of one new token per sequence over the paged cache, split over the context.

Memory-bound: the least traffic is every key and value once. A program takes one KV head of one
sequence over a part of its context, and all query heads of that KV head, padded to a tensor-core
tile of 16. With more than one split, parts are merged by a second kernel. The grid depends on the
capacities (rows, heads, splits) alone; lengths are read on the device, so that a captured graph
stays right for any lengths. A length of 0 gives zeros.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.attention_math import LOG2E, soft_capped, with_sink
from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv, power_of_2, sm_count
from workbench.kernels.spec import check_limits

LIMITS = {"head_dim": (1, 256), "group": (1, 64), "block_size": (1, 1024)}
MAX_SPLITS = 128


@triton.jit
def _span(context_lens, row, window, num_splits, WINDOWED: tl.constexpr, MIN_SPLIT: tl.constexpr):
    """Return (first visible position, length, tokens per split); splits are of MIN_SPLITs."""
    length = tl.load(context_lens + row)
    first = tl.maximum(length - window, 0) if WINDOWED else 0
    tokens = tl.cdiv(length - first, num_splits)
    return first, length, tl.cdiv(tl.maximum(tokens, 1), MIN_SPLIT) * MIN_SPLIT


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


@triton.jit
def _score(q, k, factor, cap, slope, distance, SWAP: tl.constexpr,
           CAPPED: tl.constexpr, ALIBI: tl.constexpr):  # fmt: skip
    """Return base-2 scores: [keys, heads] if SWAP, else [heads, keys]."""
    if SWAP:
        score = tl.dot(k, tl.trans(q), input_precision="ieee")
    else:
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
    score = score * factor
    if CAPPED:
        score = soft_capped(score, cap)
    if ALIBI:
        if SWAP:
            score = score - distance[:, None] * slope[None, :]
        else:
            score = score - distance[None, :] * slope[:, None]
    if CAPPED or ALIBI:
        score = score * LOG2E
    return score


@triton.jit(do_not_specialize=["num_splits", "window"])
def paged_decode_kernel(
    q, kv, tables, context_lens, k_scale, v_scale, sinks, alibi, out, partial, partial_lse,
    q_stride, side_stride, table_stride, num_splits, window, scale, cap,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
    TILE_G: tl.constexpr, TILE_D: tl.constexpr,
    BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Attend from G query heads of one KV head over one split of one row's context."""
    head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    ALIBI: tl.constexpr = alibi is not None
    first, length, tokens = _span(context_lens, row, window, num_splits, WINDOWED, MIN_SPLIT)
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
    if k_scale is not None:
        factor *= tl.load(k_scale + head)
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
        score = _score(queries, k, factor, cap, slope, away, SWAP, CAPPED, ALIBI)
        score = tl.where(valid[:, None] if SWAP else valid[None, :], score, float("-inf"))
        acc, norm, peak = _fold(score, v, acc, norm, peak, SWAP)
    _finish(acc, norm, peak, v_scale, sinks, out, partial, partial_lse, row, split, num_splits,
            head, heads, group, d, K, G, D, SPLIT, SWAP)  # fmt: skip


@triton.jit
def _finish(acc, norm, peak, v_scale, sinks, out, partial, partial_lse, row, split, num_splits,
            head, heads, group, d, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
            SPLIT: tl.constexpr, SWAP: tl.constexpr):  # fmt: skip
    """Store a row's output, or a split's output with the base-2 logarithm of its weight."""
    keys: tl.constexpr = 0 if SWAP else 1
    if not SPLIT and sinks is not None:
        sink = tl.load(sinks + heads, mask=group < G, other=0.0).to(tl.float32)
        acc, norm = with_sink(acc, norm, peak, sink * LOG2E, keys)
    acc = acc / tl.expand_dims(tl.where(norm > 0.0, norm, 1.0), keys)
    if v_scale is not None:
        acc *= tl.load(v_scale + head)
    if SWAP:
        own = (group < G)[None, :] & (d < D)[:, None]
        offset = d[:, None]
    else:
        own = (group < G)[:, None] & (d < D)[None, :]
        offset = d[None, :]
    place = row * K * G + heads
    if SPLIT:
        part = place * num_splits + split
        tl.store(partial + tl.expand_dims(part * D, keys) + offset, acc, mask=own)
        tl.store(partial_lse + part, peak + tl.log2(norm), mask=group < G)
    else:
        where = out + tl.expand_dims(place * D, keys) + offset
        tl.store(where, acc.to(out.dtype.element_ty), mask=own)


@triton.jit(do_not_specialize=["num_splits", "window"])
def merge_splits_kernel(
    partial, partial_lse, context_lens, sinks, out, num_splits, window,
    H: tl.constexpr, D: tl.constexpr, WINDOWED: tl.constexpr,
    TILE_S: tl.constexpr, TILE_D: tl.constexpr, MIN_SPLIT: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one head of one row, each weighted by its share of the softmax."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first, length, tokens = _span(context_lens, row, window, num_splits, WINDOWED, MIN_SPLIT)
    split, d = tl.arange(0, TILE_S), tl.arange(0, TILE_D)
    used = split < tl.cdiv(length - first, tokens)
    part = (row * H + head) * num_splits + split
    lse = tl.load(partial_lse + part, mask=used, other=float("-inf"))
    peak = tl.maximum(tl.max(lse, axis=0), -1.0e30)  # a row without keys has none to subtract
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        peak = tl.maximum(peak, sink)
    weight = tl.where(used, tl.exp2(lse - peak), 0.0)
    norm = tl.sum(weight, axis=0)
    if sinks is not None:
        norm += tl.exp2(sink - peak)
    wanted = used[:, None] & (d < D)[None, :]
    parts = tl.load(partial + part[:, None] * D + d[None, :], mask=wanted, other=0.0)
    mixed = tl.sum(parts * weight[:, None], axis=0) / tl.where(norm > 0.0, norm, 1.0)
    where = out + (row * H + head) * D + d
    tl.store(where, mixed.to(out.dtype.element_ty), mask=d < D)


def choose_splits(rows: int, kv_heads: int, longest: int, total: int, num_sms: int) -> int:
    """Return into how many parts each context is cut, from lengths known on the host.

    At least two programs fit a multiprocessor. The cost of a cut is the time of its programs, each
    with 64 tokens' worth for its start, and half a program for the uneven end of more than one
    wave; merging costs 256 tokens' worth. For a graph that is to be captured, pass the largest
    lengths that it must serve.
    """
    slots = 2 * num_sms
    longest = max(longest, 1)
    even = cdiv(longest, max(256, cdiv(total * kv_heads, slots)))
    best, best_cost = 1, float("inf")
    candidates = {1, even - 1, *(even * factor for factor in (1, 2, 3, 4))}
    for splits in sorted({min(max(1, candidate), MAX_SPLITS) for candidate in candidates}):
        if splits > 1 and longest < 192 * splits:
            continue
        tokens = cdiv(longest, splits)
        programs = kv_heads * max(rows, cdiv(total, tokens))
        waves = 1.0 if programs <= slots else programs / slots + 0.5
        cost = waves * (tokens + 64) + (256 if splits > 1 else 0)
        if cost < best_cost:
            best, best_cost = splits, cost
    return best


def default(q: Tensor, kv: Tensor, **_: Any) -> Config:
    """Return 64 keys a step, keys as the tile's rows (SWAP) where halves allow it."""
    wide = power_of_2(kv.shape[4]) * kv.element_size() > 256
    halves = kv.element_size() == 2 and q.element_size() == 2
    return {
        "BLOCK_N": 32 if wide else 64,
        "MIN_SPLIT": 128,
        "SWAP": int(halves and not wide),
        "num_warps": 4,
        "num_stages": 3,
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
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    num_splits: int | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Plan:
    """Plan attention from q [S, H, D] over kv [2, blocks, block_size, K, D]; returns [S, H, D].

    block_tables [S, B] and context_lens [S] int32; a length counts the new token, whose key is
    already in the cache. num_splits None: for a table's capacity. k_scale, v_scale [K] float32 for
    int8 or fp8 caches. Other arguments as of `attention_math.attend`.
    """
    rows, heads, dim = q.shape
    _, _, block_size, kv_heads, _ = kv.shape
    check_limits(
        "paged_decode", LIMITS, head_dim=dim, group=heads // kv_heads, block_size=block_size
    )
    assert q[:1].is_contiguous(), "the heads of a token are adjacent"
    assert kv.is_contiguous(), "a layer's cache is one piece"
    config = config or default(q, kv)
    if num_splits is None:
        capacity = block_tables.shape[1] * block_size
        num_splits = choose_splits(rows, kv_heads, capacity, rows * capacity, sm_count(q.device))
    if out is None:
        out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device)
    split = num_splits > 1
    shared = {
        "context_lens": context_lens, "sinks": sinks, "out": out, "num_splits": num_splits,
        "window": window or 0, "D": dim, "WINDOWED": window is not None,
        "partial": torch.empty((rows, heads, num_splits, dim), device=q.device) if split else None,
        "partial_lse": torch.empty((rows, heads, num_splits), device=q.device) if split else None,
        "TILE_D": max(16, power_of_2(dim)),
    }  # fmt: skip
    arguments = shared | {
        "q": q, "kv": kv, "tables": block_tables, "k_scale": k_scale, "v_scale": v_scale,
        "alibi": alibi, "q_stride": q.stride(0), "side_stride": kv.stride(0),
        "table_stride": block_tables.stride(0), "scale": scale, "cap": soft_cap or 0.0,
        "K": kv_heads, "G": heads // kv_heads, "BLOCK_SIZE": block_size,
        "CAPPED": soft_cap is not None, "SPLIT": split, "UPCAST": INTERPRETED,
        "TILE_G": max(16, power_of_2(heads // kv_heads)),
    }  # fmt: skip
    if not rows:
        return Plan((), out)
    launches = [Launch(paged_decode_kernel, (kv_heads, rows, num_splits), arguments, config)]
    if split:
        merge = shared | {"H": heads, "TILE_S": power_of_2(num_splits)}
        merging = {"MIN_SPLIT": config["MIN_SPLIT"], "num_warps": 4}
        launches.append(Launch(merge_splits_kernel, (heads, rows), merge, merging))
    return Plan(tuple(launches), out)
