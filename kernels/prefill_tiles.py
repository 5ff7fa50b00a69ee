"""Which tile of which row a program of `prefill_attention` takes, which keys it sees, their loads.

The tiles are worked out on the device from the packed rows' starts, so that a grid depends on
capacities alone.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_row(starts, num_rows, tile, BLOCK_Q: tl.constexpr):
    """Return (row, tile within the row): the last row whose first tile is not after `tile`.

    Row r begins at tile (starts[r] - starts[0]) // BLOCK_Q + r, which leaves it enough of them.
    """
    base = tl.load(starts)
    low, high = 0, num_rows
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(starts + middle) - base) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - ((tl.load(starts + low) - base) // BLOCK_Q + low)


@triton.jit
def key_bounds(old, end, lowest, window, WINDOWED: tl.constexpr, TREE: tl.constexpr,
               BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Return (first, low, first_open, last_open, high) for queries from position `lowest` on.

    No query sees a key before `first`. Tiles run from `low` to `high`; all BLOCK_Q queries see
    every key from `first_open` to `last_open`, so those tiles need no mask.
    """
    first = tl.maximum(lowest - window + 1, 0) if WINDOWED else 0
    low = first // BLOCK_N * BLOCK_N
    high = end if TREE else tl.minimum(end, lowest + BLOCK_Q)
    last_open = tl.maximum(low, (old if TREE else lowest + 1) // BLOCK_N * BLOCK_N)
    first_open = low
    if WINDOWED:
        first_open = tl.cdiv(tl.maximum(lowest + BLOCK_Q - window, 0), BLOCK_N) * BLOCK_N
        first_open = tl.minimum(tl.maximum(first_open, low), last_open)
    return first, low, first_open, last_open, high


@triton.jit
def load_tile(source, table, first_row, start, d, head, first, end, stride,
              K: tl.constexpr, D: tl.constexpr, TILE_D: tl.constexpr, BLOCK_N: tl.constexpr,
              BLOCK_SIZE: tl.constexpr, PAGED: tl.constexpr, TMA: tl.constexpr,
              MASKED: tl.constexpr):  # fmt: skip
    """Return keys or values start : start + BLOCK_N of one head, zero outside first : end.

    What lies outside is a stranger's, and a weight of 0 times NaN is NaN.
    """
    position = start + tl.arange(0, BLOCK_N)
    inside = (position >= first) & (position < end)
    if TMA:
        row = first_row + start
        if PAGED:  # a tile lies within one block
            row = tl.load(table + start // BLOCK_SIZE) * BLOCK_SIZE + start % BLOCK_SIZE
        tile = source.load([row, head * D])
        if MASKED:
            tile = tl.where(inside[:, None], tile, 0.0).to(tile.dtype)
    else:
        if PAGED:
            if MASKED:
                block = tl.load(table + position // BLOCK_SIZE, mask=inside, other=0)
            else:
                block = tl.load(table + position // BLOCK_SIZE)
            rows = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        else:
            rows = (first_row + position).to(tl.int64)
        places = source + rows[:, None] * stride + (head * D + d)[None, :]
        if MASKED:
            tile = tl.load(places, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        elif D == TILE_D:
            tile = tl.load(places)
        else:
            tile = tl.load(places, mask=(d < D)[None, :], other=0.0)
    return tile


@triton.jit
def token_scales(scales, table, start, head, first, end, K: tl.constexpr, BLOCK_N: tl.constexpr,
                  BLOCK_SIZE: tl.constexpr):  # fmt: skip
    """Return the scales [BLOCK_N] of one head's keys or values in an 8-bit cache."""
    position = start + tl.arange(0, BLOCK_N)
    inside = (position >= first) & (position < end)
    block = tl.load(table + position // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    places = scales + (block * K + head) * BLOCK_SIZE + position % BLOCK_SIZE
    return tl.load(places, mask=inside, other=0.0)
