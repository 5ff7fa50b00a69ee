"""The paged cache's layout, shared by the kernels that write or read it.

A layer's cache is [2 (keys, values), num_blocks, block_size, K, D]; slot = block * block_size +
offset. An 8-bit cache has scales beside it (`quantised_kv`). `random_cache`, `random_scales` and
`gather_row` make and read caches in input makers and references.
"""

from __future__ import annotations

import random

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.quantised_kv import (
    QUANTISED,
    dequantised,
    scale_shape,
)


@triton.jit
def to_cache(first, second, scales, wanted, INT8: tl.constexpr, LARGEST: tl.constexpr):
    """Return heads' halves over their scale, which is stored; as they are without `scales`."""
    if scales is not None:
        peak = tl.maximum(tl.max(tl.abs(first), axis=1), tl.max(tl.abs(second), axis=1))
        scale = tl.where(peak > 0.0, peak / LARGEST, 1.0)
        tl.store(scales, scale, mask=wanted)
        # A quotient may be rounded to above the largest, which fp8 would take for NaN.
        first = tl.clamp(first / scale[:, None], -LARGEST, LARGEST)
        second = tl.clamp(second / scale[:, None], -LARGEST, LARGEST)
        if INT8:
            first, second = tl.floor(first + 0.5), tl.floor(second + 0.5)
    return first, second


def gather_row(
    kv: Tensor, block_ids: Tensor, length: int, scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return keys and values [length, K, D] float32 of one sequence's blocks."""
    ids = block_ids.long()
    kept = kv[:, ids].float() if scales is None else dequantised(kv[:, ids], scales[:, ids])
    keys, values = kept.flatten(1, 2)[:, :length]
    return keys, values


def random_cache(
    lens: list[int],
    *,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return a cache and block tables [S, B] for sequences of these lengths.

    Blocks are shuffled. Where a float cache belongs to nobody it holds NaN, which must not matter;
    the tables are padded with the id of such a block.
    """
    counts = [-(-length // block_size) for length in lens]
    num_blocks = sum(counts) + 2
    order = random.Random(3).sample(range(num_blocks), num_blocks)
    shape = (2, num_blocks, block_size, kv_heads, dim)
    kv = torch.empty(shape, dtype=dtype, device=device)
    for side in kv:  # by halves and blocks of rows, as a whole draw in float32 would not fit
        for begin in range(0, num_blocks, 4096):
            part = side[begin : begin + 4096]
            noise = torch.randn(part.shape, generator=generator, device=device)
            part.copy_(noise.mul_(30).round_().clamp_(-127, 127) if dtype == torch.int8 else noise)
    tables = torch.full((len(lens), max([1, *counts])), order[-1], dtype=torch.int32)
    used, last = 0, []
    for row, count in enumerate(counts):
        tables[row, :count] = torch.tensor(order[used : used + count], dtype=torch.int32)
        used += count
        last.append(order[used - 1])
    if dtype not in QUANTISED:
        kv[:, order[-2:]] = torch.nan
        for row, (length, count) in enumerate(zip(lens, counts, strict=True)):
            if count and length % block_size:
                kv[:, last[row], length % block_size :] = torch.nan
    return kv, tables.to(device)


def random_scales(kv: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Return `kv_scales` for a quantised cache, nothing for another."""
    if kv.dtype not in QUANTISED:
        return {}
    scales = torch.rand(scale_shape(kv.shape), generator=generator, device=kv.device) + 0.5
    return {"kv_scales": scales / (30 if kv.dtype == torch.int8 else 1)}
