"""What `lora_expand` is made of: which outputs a program adds to, rank rows, and their products.

Small functions that the kernel calls; rank rows and the table of variants are written by no kernel
of a pass, so they may be read ahead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.early import load_ahead


@triton.jit
def span_of(starts, block, PARTS: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the part of the block-th of all parts' blocks, counted one part after another, where
    the block begins and where its part ends. EVEN: parts begin and end with blocks."""
    part, begin, end = 0, 0, 0
    for p in tl.static_range(PARTS):
        low, high = load_ahead(starts + p), load_ahead(starts + p + 1)
        blocks = (high - low + BLOCK_N - 1) // BLOCK_N
        here = (block >= 0) & (block < blocks)
        part = tl.where(here, p, part)
        begin = tl.where(here, low + block * BLOCK_N, begin)
        end = tl.where(here, high, end)
        block -= blocks
    if EVEN:
        begin = tl.multiple_of(begin, 16)
    return part, begin, end


@triton.jit
def rank_rows(rows, scales, shifts, listed, wanted):
    """Return the rank rows at some places of a variant, their scales and their shifts."""
    row = load_ahead(rows + listed, mask=wanted, other=0).to(tl.int64)
    scale = load_ahead(scales + listed, mask=wanted, other=0.0)
    return row, scale, load_ahead(shifts + listed, mask=wanted, other=0.0)


@triton.jit
def row_weights(b, row, num_outputs, outputs, end, wanted, EVEN: tl.constexpr):
    """Return the outputs of rank rows [BLOCK_R, BLOCK_N]."""
    there = wanted[:, None] if EVEN else wanted[:, None] & (outputs < end)[None, :]
    return load_ahead(b + row[:, None] * num_outputs + outputs[None, :], mask=there, other=0.0)


@triton.jit
def products_of_one(found, step, columns, wanted, SPLITS: tl.constexpr, SPLITS_2: tl.constexpr):
    """Return what was found for one token, which begins at found [1]: [BLOCK_R], summed over the
    splits, from each to the next of which it is a step."""
    split = tl.arange(0, SPLITS_2)
    there = (split < SPLITS)[:, None] & wanted[None, :]
    places = found[:, None] + split[:, None] * step + columns[None, :]
    return tl.sum(tl.load(places, mask=there, other=0.0), axis=0)


@triton.jit
def products_of_tile(found, step, columns, known, wanted, SPLITS: tl.constexpr):
    """Return what was found for a tile's tokens, which begin at found [TILE]: [TILE, BLOCK_R],
    summed over the splits."""
    there = known[:, None] & wanted[None, :]
    places = found[:, None] + columns[None, :]
    sums = tl.load(places, mask=there, other=0.0)
    for split in tl.static_range(1, SPLITS):
        sums += tl.load(places + split * step, mask=there, other=0.0)
    return sums


@triton.jit
def add_dot(factors, weights, acc, UPCAST: tl.constexpr):
    """Return acc + factors weights, multiplied in the weights' dtype."""
    factors = factors.to(weights.dtype)
    if UPCAST:
        factors, weights = factors.to(tl.float32), weights.to(tl.float32)
    return tl.dot(factors, weights, acc, input_precision="ieee")


@triton.jit
def add_block(
    acc, found, step, b, rows, scales, shifts, listed, place, rank, outputs, end, num_outputs,
    known, SPLITS: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Return acc and what the rank rows from `place` on add for a tile's tokens."""
    columns = place + tl.arange(0, BLOCK_R)
    wanted = columns < rank
    row, scale, shift = rank_rows(rows, scales, shifts, listed + columns, wanted)
    weights = row_weights(b, row, num_outputs, outputs, end, wanted, EVEN)
    sums = products_of_tile(found, step, columns, known, wanted, SPLITS)
    return add_dot(sums * scale + shift, weights, acc, UPCAST)
