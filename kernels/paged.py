"""The paged cache's layout and its quantised dtypes, shared by the kernels that write or read it.

A layer's cache is [2 (keys, values), num_blocks, block_size, K, D]; slot = block * block_size +
offset. An int8 or fp8 (e4m3) cache keeps x / scale with one float32 scale per KV head, for keys and
for values. `random_cache` and `gather_row` make and read caches in input makers and references.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FP8 = torch.float8_e4m3fn
QUANTISED = (torch.int8, FP8)
LARGEST = {torch.int8: 127.0, FP8: 448.0}


@triton.jit
def to_cache(x, INT8: tl.constexpr, FP8: tl.constexpr):
    """Return float32 x, already divided by its scale, within the range of the cache's dtype."""
    if INT8:
        x = tl.floor(tl.clamp(x, -127.0, 127.0) + 0.5)
    if FP8:  # out of range would become NaN
        x = tl.clamp(x, -448.0, 448.0)
    return x


def quantise(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return x [..., K, D] as a cache of this dtype keeps it; scale [K] (None: 1)."""
    if dtype not in QUANTISED:
        return x.to(dtype)
    wide = x.float() if scale is None else x.float() / scale.unsqueeze(-1)
    bounded = wide.clamp(-LARGEST[dtype], LARGEST[dtype])
    return (torch.floor(bounded + 0.5) if dtype == torch.int8 else bounded).to(dtype)


def gather_row(
    kv: Tensor, block_ids: Tensor, length: int, scales: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return keys and values [length, K, D] float32 of one sequence's blocks."""
    keys, values = (side[block_ids.long()].flatten(0, 1)[:length].float() for side in kv)
    if scales is None:
        return keys, values
    return keys * scales[0].unsqueeze(-1), values * scales[1].unsqueeze(-1)


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
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(3)).tolist()
    shape = (2, num_blocks, block_size, kv_heads, dim)
    kv = torch.empty(shape, dtype=dtype, device=device)
    for side in kv:  # by halves and blocks of rows, as a whole draw in float32 would not fit
        for begin in range(0, num_blocks, 4096):
            part = side[begin : begin + 4096]
            noise = torch.randn(part.shape, generator=generator, device=device)
            part.copy_(quantise(noise * (30 if dtype == torch.int8 else 1), None, dtype))
    tables = torch.full((len(lens), max([1, *counts])), order[-1], dtype=torch.int32)
    used = 0
    for row, count in enumerate(counts):
        tables[row, :count] = torch.tensor(order[used : used + count], dtype=torch.int32)
        used += count
    if dtype not in QUANTISED:
        kv[:, order[-2:]] = torch.nan
        for row, (length, count) in enumerate(zip(lens, counts, strict=True)):
            if count and length % block_size:
                kv[:, int(tables[row, count - 1]), length % block_size :] = torch.nan
    return kv, tables.to(device)


def random_scales(dtype: torch.dtype, kv_heads: int, device: torch.device) -> dict[str, Tensor]:
    """Return `k_scale` and `v_scale` [K] for a quantised cache, nothing for another."""
    if dtype not in QUANTISED:
        return {}
    steps = torch.arange(kv_heads, device=device) % 3
    base = (0.5 + 0.25 * steps) / (30 if dtype == torch.int8 else 1)
    return {"k_scale": base, "v_scale": base.flip(0).contiguous()}
