"""Which tile of which row a program of `prefill_attention` takes, and which keys it must see.

Worked out on the device from the packed rows' starts, so that a grid depends on capacities alone.
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
