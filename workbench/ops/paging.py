"""Reading and writing the paged KV tensor of one layer.

A layer's tensor is [2, num_blocks, block_size, K, D], keys then values, so that the blocks of a
sequence gather into [L, K, D] without a further copy. A slot is block * block_size + offset. An
8-bit tensor has scales beside it (`kernels.quantised_kv`). Called by the torch backends only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.kernels.quantised_kv import dequantised, quantise


def write(
    kv: Tensor, slot_mapping: Tensor, k: Tensor, v: Tensor, scales: Tensor | None = None
) -> None:
    """Store k, v [T, K, D] at slots [T] of a layer's tensor, in place, and their scales."""
    if scales is None:
        keys, values = kv.flatten(1, 2)
        keys.index_copy_(0, slot_mapping, k.to(kv.dtype))
        values.index_copy_(0, slot_mapping, v.to(kv.dtype))
        return
    blocks, offsets = slot_mapping // kv.shape[2], slot_mapping % kv.shape[2]
    for side, own, new in zip(kv.view(torch.int8).flatten(1, 2), scales, (k, v), strict=True):
        kept, factors = quantise(new, kv.dtype)
        side.index_copy_(0, slot_mapping, kept.view(torch.int8))
        own[blocks, :, offsets] = factors


def gather(
    kv: Tensor, block_ids: Tensor, scratch: Tensor | None = None, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return keys and values of blocks [S, B], each a copy [S, B * block_size, K, D].

    Those of an 8-bit cache come as float32, times their scales.

    `scratch` [2, n] elements: where to copy to, which spares a large allocation in every layer.
    """
    rows, blocks = block_ids.shape
    _, num_blocks, block_size, heads, dim = kv.shape
    index = block_ids.reshape(-1)
    if scales is not None:
        kept = kv.view(torch.int8)[:, index].view(kv.dtype)
        keys, values = dequantised(kept, scales[:, index]).view(2, rows, -1, heads, dim)
        return keys, values
    taken = []
    for side in (0, 1):
        source = kv[side].view(num_blocks, -1)
        if scratch is None:
            part = source.index_select(0, index)
        else:
            part = scratch[side, : index.numel() * source.shape[1]].view(index.numel(), -1)
            torch.index_select(source, 0, index, out=part)
        taken.append(part.view(rows, blocks * block_size, heads, dim))
    return taken[0], taken[1]
