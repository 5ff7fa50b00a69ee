"""The last kernel of `sample`: a row's token, from what the others have found out about it.

Rows without top-k and top-p draw in the order of token ids, the others in that of likelihood, as
`workbench.sample` does; so a row's path follows from its own parameters alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.sample_math import (
    key_of,
    least_key,
    row_logits,
    row_peak,
    token_of,
    uniform_of,
    value_of,
    weight_of,
)
from workbench.kernels.sample_wide import draw_wide, target_of


@triton.jit
def draw_plain(
    logits, slots, seen, repetition, presence, frequency, sums, row, uniform, peak, heat, floor,
    vocab_size, row_stride, num_chunks,
    PENALISED: tl.constexpr, PRECISE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the token that a uniform falls on, tokens in the order of their ids."""
    chunk = tl.arange(0, TILE)
    parts = tl.load(sums + row * num_chunks + chunk, mask=chunk < num_chunks, other=0)
    target = target_of(uniform, tl.sum(parts, axis=0))
    running = tl.cumsum(parts, axis=0)
    place = tl.sum((running <= target).to(tl.int32), axis=0)
    place = tl.minimum(place, num_chunks - 1)
    before = tl.sum(tl.where(chunk < place, parts, 0), axis=0)
    columns = place * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab_size
    _, x = row_logits(logits, slots, seen, repetition, presence, frequency, row, row_stride,
                      columns, inside, vocab_size, PENALISED)  # fmt: skip
    weight = weight_of(x, peak, heat, PRECISE)
    weight = tl.where(weight.to(tl.float64) < floor, 0, weight)
    running = before + tl.cumsum(weight, axis=0)
    passed = tl.sum((running <= target).to(tl.int32), axis=0)
    return tl.minimum(place * BLOCK + passed, vocab_size - 1)


@triton.jit
def _largest_key(keys, amounts, bound, peak, heat, vocab_size):
    """Return the largest key at or above which `amounts` reach `bound`; the least if none does.

    Sums stay under 2^53, so that float64 compares integers exactly and the nucleus as eager does.
    """
    low, high = least_key(peak, heat, vocab_size), key_of(peak, vocab_size * 0) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        reached = tl.sum(tl.where(keys >= middle, amounts, 0), axis=0).to(tl.float64) >= bound
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low


@triton.jit
def draw_ranked(
    candidates, num_found, sums, row, uniform, peak, heat, k, p, floor, vocab_size, num_chunks,
    PRECISE: tl.constexpr, CANDIDATES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return (token, whether the candidates were enough to tell it), likeliest tokens first.

    Each question bisects keys in registers: a sort of 2048 is 66 exchanges, all compiled apart.
    """
    chunk, place = tl.arange(0, TILE), tl.arange(0, CANDIDATES)
    parts = tl.load(sums + row * num_chunks + chunk, mask=chunk < num_chunks, other=0)
    total = tl.sum(parts, axis=0)
    known = place < num_found
    keys = tl.load(candidates + row * CANDIDATES + place, mask=known, other=-(2**62))
    weight = tl.where(known, weight_of(value_of(keys), peak, heat, PRECISE), 0)
    held = tl.sum(weight, axis=0)
    enough = held == total  # the others have no weight
    if k < vocab_size:
        enough = enough | (num_found >= k)
        last = _largest_key(keys, known.to(tl.int64), k, peak, heat, vocab_size)
        weight = tl.where(keys >= last, weight, 0)
        total = tl.sum(weight, axis=0)
    else:
        enough = enough | (held.to(tl.float64) >= p * total.to(tl.float64))
    if enough & (p < 1.0):
        last = _largest_key(keys, weight, p * total.to(tl.float64), peak, heat, vocab_size)
        weight = tl.where(keys >= last, weight, 0)
    token = -1
    if enough:
        weight = tl.where(weight.to(tl.float64) >= floor, weight, 0)
        target = target_of(uniform, tl.sum(weight, axis=0))
        token = token_of(_largest_key(keys, weight, target + 1, peak, heat, vocab_size))
    return token, enough


@triton.jit
def draw_kernel(
    logits, slots, seen, repetition, presence, frequency, temperature, top_k, top_p, min_p,
    keys, indices, peaks, best, own_peaks, sums, exponentials, found, candidates, tokens, logprobs,
    vocab_size, row_stride, num_chunks,
    PENALISED: tl.constexpr, PRECISE: tl.constexpr, SAMPLED: tl.constexpr, RANKED: tl.constexpr,
    CANDIDATES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decide a row's token; write it, its log-probability, and its count."""
    row = tl.program_id(0).to(tl.int64)
    peak, first = row_peak(peaks, row, num_chunks, TILE)
    valid = (peak == peak) & (tl.abs(peak) < float("inf"))
    token = tl.full([], -1, tl.int32)
    if valid:
        token = tl.load(best + row * num_chunks + first)
        if SAMPLED:
            heat = tl.load(temperature + row)
            if heat > 0.0:
                k, p = tl.load(top_k + row), tl.load(top_p + row)
                floor = tl.load(min_p + row) * 1099511627776.0
                uniform = uniform_of(tl.load(keys + row), tl.load(indices + row))
                enough = False
                if RANKED and ((k < vocab_size) | (p < 1.0)):
                    token, enough = draw_ranked(
                        candidates, tl.load(found + row), sums, row, uniform, peak, heat, k, p,
                        floor, vocab_size, num_chunks, PRECISE, CANDIDATES, TILE)  # fmt: skip
                    if not enough:
                        token = draw_wide(
                            logits, slots, seen, repetition, presence, frequency, row, row_stride,
                            uniform, peak, heat, k, p, floor, vocab_size, PENALISED, PRECISE,
                            BLOCK)  # fmt: skip
                else:
                    token = draw_plain(
                        logits, slots, seen, repetition, presence, frequency, sums, row, uniform,
                        peak, heat, floor, vocab_size, row_stride, num_chunks, PENALISED, PRECISE,
                        BLOCK, TILE)  # fmt: skip
    chunk = tl.arange(0, TILE)
    parts = tl.load(exponentials + row * num_chunks + chunk, mask=chunk < num_chunks, other=0.0)
    own_peak = peak
    if PENALISED:
        own_peak, _ = row_peak(own_peaks, row, num_chunks, TILE)
    own = tl.load(logits + row * row_stride + tl.maximum(token, 0)).to(tl.float32)
    logprob = own - own_peak - tl.log(tl.sum(parts, axis=0))
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, tl.where(valid, logprob, float("nan")))
    if PENALISED:
        slot = tl.load(slots + row)
        if valid & (slot >= 0):
            place = seen + slot * vocab_size + token
            tl.store(place, tl.maximum(tl.load(place), 1) + 1)
