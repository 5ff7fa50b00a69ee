"""Copies within a KV tensor: whole blocks (copy-on-write), and single slots (accepted drafts).

A tensor is [layers, 2, blocks, block_size, K, D], or [layers, 2, blocks, K, block_size] of scales.
Called by `KVCache` alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def copy_blocks(tensor: Tensor, copies: list[tuple[int, int]]) -> None:
    """Copy each (source, destination) pair of blocks, in order.

    In order matters where a source is the destination of an earlier pair (a fork of a fork).
    """
    together: dict[int, int] = {}  # {destination: source} that do not build on each other
    for source, destination in copies:
        if source in together:
            _copy_at_once(tensor, together)
            together = {}
        together[destination] = source
    _copy_at_once(tensor, together)


def move_slots(tensor: Tensor, moves: list[tuple[int, int]], block_size: int) -> None:
    """Copy each (source, destination) pair of slots; all are read before one is written."""
    slots = _bytes(tensor if tensor.dim() == 6 else tensor.transpose(3, 4))
    # On the host, and by way of numpy (torch takes ten times as long for a list): a launch for
    # each of these operations would take longer.
    places = np.stack(np.divmod(np.array(moves, dtype=np.int64), block_size))  # [2, n, 2]
    blocks, offsets = torch.from_numpy(places).to(tensor.device, non_blocking=True).unbind()
    taken = slots[:, :, blocks[:, 0], offsets[:, 0]]
    slots[:, :, blocks[:, 1], offsets[:, 1]] = taken


def to_host(tensor: Tensor, block_ids: list[int]) -> list[Tensor]:
    """Return these blocks of each layer, on the host; those of one layer are gathered at once."""
    ids = torch.tensor(block_ids, dtype=torch.int64, device=tensor.device)
    return [layer.index_select(1, ids).cpu() for layer in _bytes(tensor)]


def from_host(tensor: Tensor, block_ids: list[int], staged: list[Tensor]) -> None:
    """Write to these blocks what `to_host` returned."""
    ids = torch.tensor(block_ids, dtype=torch.int64, device=tensor.device)
    for layer, content in zip(_bytes(tensor), staged, strict=True):
        layer.index_copy_(1, ids, content.to(tensor.device))


def _copy_at_once(tensor: Tensor, source_of: dict[int, int]) -> None:
    if not source_of:
        return
    pairs = torch.tensor(list(source_of.items()), device=tensor.device)
    destinations, sources = pairs.unbind(1)
    tensor = _bytes(tensor)
    tensor[:, :, destinations] = tensor[:, :, sources]


def _bytes(tensor: Tensor) -> Tensor:
    """Return fp8 as int8 over the same memory: torch cannot index the one on a CPU."""
    return tensor.view(torch.int8) if tensor.dtype == torch.float8_e4m3fn else tensor
