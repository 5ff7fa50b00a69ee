"""Packed batches over a paged cache, and attention written as its definition in float64.

`make_batch` scatters rows over shuffled blocks of a cache whose other slots hold NaN, as nobody may
read them. `dense_attention` loops over tokens, heads and keys of whole sequences.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.batch import Backend, ForwardContext


@dataclass
class Batch:
    """A step's attention input, and the whole sequences it was cut from."""

    q: Tensor  # [T, H, D]
    k: Tensor  # [T, K, D]
    v: Tensor
    ctx: ForwardContext
    keys: list[Tensor]  # per row [kv_len, K, D]: what the row must attend to
    values: list[Tensor]


def make_batch(
    backend: Backend,
    rows: list[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    num_layers: int = 1,
) -> Batch:
    """Return a batch of rows (new tokens, context length with them); decodes must come first."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    counts = [-(-length // block_size) for _, length in rows]
    num_blocks = sum(counts) + 3
    free = list(range(num_blocks))
    random.Random(1).shuffle(free)
    kv = torch.full(
        (2, num_blocks, block_size, kv_heads, dim), torch.nan, dtype=dtype, device=device
    )
    tables = torch.zeros(len(rows), max(counts), dtype=torch.int32)
    keys, values, new_k, new_v, slots, positions = [], [], [], [], [], []
    for row, (num_new, length) in enumerate(rows):
        blocks, free = free[: counts[row]], free[counts[row] :]
        tables[row, : counts[row]] = torch.tensor(blocks, dtype=torch.int32)
        key, value = noise(length, kv_heads, dim), noise(length, kv_heads, dim)
        slot = torch.tensor(
            [blocks[p // block_size] * block_size + p % block_size for p in range(length)]
        )
        old = slot[: length - num_new].to(device)
        kv[0].flatten(0, 1)[old] = key[: length - num_new]
        kv[1].flatten(0, 1)[old] = value[: length - num_new]
        keys.append(key)
        values.append(value)
        new_k.append(key[length - num_new :])
        new_v.append(value[length - num_new :])
        slots.append(slot[length - num_new :])
        positions.append(torch.arange(length - num_new, length))
    query_lens, kv_lens = [n for n, _ in rows], [length for _, length in rows]
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(device, torch.int32)
    ctx = ForwardContext(
        backend=backend,
        positions=torch.cat(positions).to(device),
        query_lens=query_lens,
        kv_lens=kv_lens,
        num_decodes=next((i for i, n in enumerate(query_lens) if n > 1), len(rows)),
        query_starts=starts,
        context_lens=torch.tensor(kv_lens, dtype=torch.int32, device=device),
        slot_mapping=torch.cat(slots).to(device),
        block_tables=tables.to(device),
        kv=[kv.clone() for _ in range(num_layers)],
    )
    ctx.prepared = backend.prepare(ctx)
    q = noise(sum(query_lens), heads, dim)
    return Batch(q, torch.cat(new_k), torch.cat(new_v), ctx, keys, values)


def dense_attention(batch: Batch, scale: float, window: int | None) -> Tensor:
    """Return [T, H, D] float64 on the CPU, one token, head and key at a time."""
    out, start = [], 0
    for row, num_new in enumerate(batch.ctx.query_lens):
        key, value = batch.keys[row].double().cpu(), batch.values[row].double().cpu()
        queries = batch.q[start : start + num_new].double().cpu()
        start += num_new
        group = queries.shape[1] // key.shape[1]
        for offset in range(num_new):
            position = len(key) - num_new + offset
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(queries.shape[1]):
                seen = range(first, position + 1)
                dots = [float(queries[offset, head] @ key[p, head // group]) * scale for p in seen]
                largest = max(dots)
                weights = [math.exp(dot - largest) for dot in dots]
                mixed = sum(
                    (w * value[p, head // group] for w, p in zip(weights, seen, strict=True)),
                    torch.zeros(key.shape[2], dtype=torch.float64),
                )
                out.append(mixed / sum(weights))
    return torch.stack(out).view(batch.q.shape)
