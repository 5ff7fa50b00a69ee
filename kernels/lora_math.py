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
def row_weights(b, row, num_outputs, outputs, wanted, inside, EVEN: tl.constexpr):
    """Return the outputs of rank rows [BLOCK_R, BLOCK_N]."""
    there = wanted[:, None] if EVEN else wanted[:, None] & inside[None, :]
    return load_ahead(b + row[:, None] * num_outputs + outputs[None, :], mask=there, other=0.0)


@triton.jit
def products_of_one(inner, step, columns, wanted, SPLITS: tl.constexpr, SPLITS_2: tl.constexpr):
    """Return what was found for one token [BLOCK_R], summed over the splits."""
    split = tl.arange(0, SPLITS_2)
    there = (split < SPLITS)[:, None] & wanted[None, :]
    found = tl.load(inner + split[:, None] * step + columns[None, :], mask=there, other=0.0)
    return tl.sum(found, axis=0)


@triton.jit
def products_of_tile(inner, step, columns, known, wanted, SPLITS: tl.constexpr):
    """Return what was found for a tile's tokens, which begin at inner [TILE, 1]: [TILE, BLOCK_R],
    summed over the splits."""
    there = known[:, None] & wanted[None, :]
    found = tl.load(inner + columns[None, :], mask=there, other=0.0)
    for split in tl.static_range(1, SPLITS):
        found += tl.load(inner + split * step + columns[None, :], mask=there, other=0.0)
    return found


@triton.jit
def add_dot(factors, weights, acc, UPCAST: tl.constexpr):
    """Return acc + factors weights, multiplied in the weights' dtype."""
    if UPCAST:
        return tl.dot(factors.to(weights.dtype).to(tl.float32), weights.to(tl.float32), acc,
                      input_precision="ieee")  # fmt: skip
    return tl.dot(factors.to(weights.dtype), weights, acc, input_precision="ieee")
