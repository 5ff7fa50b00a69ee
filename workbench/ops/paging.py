"""Reading and writing the paged KV tensor of one layer.

A layer's tensor is [2, num_blocks, block_size, K, D], keys then values, so that the blocks of a
sequence gather into [L, K, D] without a further copy. A slot is block * block_size + offset. Called
by the torch backends only.
"""

from __future__ import annotations

import torch
from torch import Tensor


def write(kv: Tensor, slot_mapping: Tensor, k: Tensor, v: Tensor) -> None:
    """Store k, v [T, K, D] at slots [T] of a layer's tensor, in place."""
    keys, values = kv.flatten(1, 2)
    keys.index_copy_(0, slot_mapping, k.to(kv.dtype))
    values.index_copy_(0, slot_mapping, v.to(kv.dtype))


def gather(kv: Tensor, block_ids: Tensor, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return keys and values of blocks [S, B], each a copy [S, B * block_size, K, D].

    `scratch` [2, n] elements: where to copy to, which spares a large allocation in every layer.
    """
    rows, blocks = block_ids.shape
    _, num_blocks, block_size, heads, dim = kv.shape
    index = block_ids.reshape(-1)
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
