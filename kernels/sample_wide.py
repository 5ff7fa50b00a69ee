"""A draw from a whole vocabulary in order of likelihood, for rows whose filters keep too much.

Every question (the k-th likeliest token, the end of the nucleus, the token that a uniform falls on)
asks for the largest key that enough lies at or above. A key is bisected for, a pass over the row
each time: some 50 passes a question, for rows such as top-p over a nearly flat distribution.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.sample_math import key_of, least_key, row_logits, token_of, weight_of

COUNT = tl.constexpr(0)  # how many tokens
MASS = tl.constexpr(1)  # their weights, compared in float64 as the eager filter does
EXACT = tl.constexpr(2)  # their weights, compared as integers


@triton.jit
def _at_or_above(
    logits, slots, seen, repetition, presence, frequency, row, row_stride, peak, heat, floor, key,
    vocab_size, KIND: tl.constexpr, PENALISED: tl.constexpr, PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the number, or the weights' sum, of tokens whose key is `key` or more."""
    held = tl.zeros([BLOCK], tl.int64)
    for start in range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab_size
        _, x = row_logits(logits, slots, seen, repetition, presence, frequency, row, row_stride,
                          columns, inside, vocab_size, PENALISED)  # fmt: skip
        above = (key_of(x, columns) >= key) & inside
        if KIND == COUNT:
            held += above.to(tl.int64)
        else:
            weight = weight_of(x, peak, heat, PRECISE)
            held += tl.where(above & (weight.to(tl.float64) >= floor), weight, 0)
    return tl.sum(held, axis=0)


@triton.jit
def _largest_key(
    logits, slots, seen, repetition, presence, frequency, row, row_stride, peak, heat, floor, bound,
    vocab_size, KIND: tl.constexpr, PENALISED: tl.constexpr, PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the largest key at or above which there is `bound` or more; the least if none has."""
    low, high = least_key(peak, heat, vocab_size), key_of(peak, row * 0) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        held = _at_or_above(logits, slots, seen, repetition, presence, frequency, row, row_stride,
                            peak, heat, floor, middle, vocab_size, KIND, PENALISED, PRECISE,
                            BLOCK)  # fmt: skip
        reached = held.to(tl.float64) >= bound if KIND == MASS else held >= bound
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low


@triton.jit
def target_of(uniform, total):
    """Return the integer in 0 … total - 1 that a uniform in [0, 1) stands for."""
    # The product may round up to the total itself when the uniform is close to 1.
    return tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)


@triton.jit
def draw_wide(
    logits, slots, seen, repetition, presence, frequency, row, row_stride, uniform, peak, heat, k,
    p, floor, vocab_size, PENALISED: tl.constexpr, PRECISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the token that a uniform falls on among what top-k, top-p and min-p keep."""
    least = least_key(peak, heat, vocab_size)
    if k < vocab_size:
        least = _largest_key(
            logits, slots, seen, repetition, presence, frequency, row, row_stride, peak, heat, 0.0,
            k, vocab_size, COUNT, PENALISED, PRECISE, BLOCK)  # fmt: skip
    if p < 1.0:
        total = _at_or_above(
            logits, slots, seen, repetition, presence, frequency, row, row_stride, peak, heat, 0.0,
            least, vocab_size, EXACT, PENALISED, PRECISE, BLOCK)  # fmt: skip
        last = _largest_key(
            logits, slots, seen, repetition, presence, frequency, row, row_stride, peak, heat, 0.0,
            p * total.to(tl.float64), vocab_size, MASS, PENALISED, PRECISE, BLOCK)  # fmt: skip
        least = tl.maximum(least, last)
    total = _at_or_above(
        logits, slots, seen, repetition, presence, frequency, row, row_stride, peak, heat, floor,
        least, vocab_size, EXACT, PENALISED, PRECISE, BLOCK)  # fmt: skip
    target = target_of(uniform, total)
    key = _largest_key(
        logits, slots, seen, repetition, presence, frequency, row, row_stride, peak, heat, floor,
        target + 1, vocab_size, EXACT, PENALISED, PRECISE, BLOCK)  # fmt: skip
    return token_of(key)
