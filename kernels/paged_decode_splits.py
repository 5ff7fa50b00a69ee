"""How decode attention is split over the context: a program's part, its result, and the merge.

A row's context is cut into parts of whole MIN_SPLITs; each part leaves its output and the base-2
logarithm of its weight, and `merge_splits_kernel` mixes them. Shared by the two decode kernels,
for float caches and for 8-bit ones.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.attention_math import LOG2E, soft_capped, with_sink
from workbench.kernels.early import await_previous
from workbench.kernels.launch import cdiv

MAX_SPLITS = 128
_SHORTEST, _START, _MERGE = 64, 64, 96  # tokens' worth of time


@triton.jit
def split_span(
    context_lens, row, window, num_splits, WINDOWED: tl.constexpr, MIN_SPLIT: tl.constexpr
):
    """Return (first visible position, length, tokens per split); splits are of MIN_SPLITs."""
    length = tl.load(context_lens + row)
    first = tl.maximum(length - window, 0) if WINDOWED else 0
    tokens = tl.cdiv(length - first, num_splits)
    return first, length, tl.cdiv(tl.maximum(tokens, 1), MIN_SPLIT) * MIN_SPLIT


@triton.jit
def shaped(score, factor, cap, slope, distance, SWAP: tl.constexpr,
           CAPPED: tl.constexpr, ALIBI: tl.constexpr):  # fmt: skip
    """Return a product's base-2 scores: [keys, heads] if SWAP, else [heads, keys]."""
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


@triton.jit
def finish(acc, norm, peak, sinks, out, partial, partial_lse, row, split, num_splits,
            head, heads, group, d, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
            SPLIT: tl.constexpr, SWAP: tl.constexpr):  # fmt: skip
    """Store a row's output, or a split's output with the base-2 logarithm of its weight."""
    keys: tl.constexpr = 0 if SWAP else 1
    if not SPLIT and sinks is not None:
        sink = tl.load(sinks + heads, mask=group < G, other=0.0).to(tl.float32)
        acc, norm = with_sink(acc, norm, peak, sink * LOG2E, keys)
    acc = acc / tl.expand_dims(tl.where(norm > 0.0, norm, 1.0), keys)
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
    H: tl.constexpr, D: tl.constexpr, WINDOWED: tl.constexpr, EARLY: tl.constexpr,
    TILE_S: tl.constexpr, TILE_D: tl.constexpr, MIN_SPLIT: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one head of one row, each weighted by its share of the softmax."""
    await_previous(EARLY)
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first, length, tokens = split_span(context_lens, row, window, num_splits, WINDOWED, MIN_SPLIT)
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
    wave; merging costs 96 tokens' worth. A program of few tokens waits for memory about as long as
    one of 64: no part is shorter. For a graph that is to be captured, pass the largest lengths that
    it must serve.
    """
    slots = 2 * num_sms
    longest = max(longest, 1)
    even = cdiv(longest, max(_SHORTEST, cdiv(total * kv_heads, slots)))
    best, best_cost = 1, float("inf")
    candidates = {1, even - 1, *(even * factor for factor in (1, 2, 3, 4))}
    for splits in sorted({min(max(1, candidate), MAX_SPLITS) for candidate in candidates}):
        if splits > 1 and longest <= _SHORTEST * (splits - 1):
            continue
        tokens = cdiv(longest, splits)
        programs = kv_heads * max(rows, cdiv(total, tokens))
        waves = 1.0 if programs <= slots else programs / slots + 0.5
        cost = waves * (tokens + _START) + (_MERGE if splits > 1 else 0)
        if cost < best_cost:
            best, best_cost = splits, cost
    return best
