"""`HeadCache`: the keys and values of a head's own layers, a contiguous row per sequence.

A row grows by committed (token, state) pairs and is rolled back to a length; what a draft adds
beyond it is never counted. `extend` and `branch` return a `ForwardContext`, so that the layers of
`workbench.layers` run over it as they do over the engine's paged cache. Used by `drive` and
proposers; it never decides what is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.batch import Backend, ForwardContext
from workbench.config import ModelConfig
from workbench.describe import Described, human_bytes
from workbench.speculation.heads.attention import Rows, RowsBackend

BLOCK = 16  # slots of a block, where a row is looked at as blocks


class HeadCache(Described):
    """Keys and values [layers, 2, rows, max_len, K, D]; `lens[row]` slots of a row are committed.

    Slot i of a row holds the pair (token i + 1, state of token i), at position i. `max_len` grows
    as it must, to multiples of `BLOCK`: then rows are runs of blocks, as in the engine's own cache.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_rows: int,
        *,
        max_len: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        room = BLOCK * -(-max_len // BLOCK)
        shape = (config.num_layers, 2, num_rows, room, config.num_kv_heads, config.head_dim)
        # Zeros, not whatever the memory held: a masked key weighs 0, and 0 times NaN is NaN.
        self.kv = torch.zeros(shape, dtype=dtype, device=device)
        self.lens = [0] * num_rows

    @property
    def num_rows(self) -> int:
        """Sequences that fit."""
        return len(self.lens)

    def reserve_rows(self, num_rows: int) -> None:
        """Make room for so many sequences, at least; those that are there stay."""
        have = self.num_rows
        if num_rows <= have:
            return
        count = max(num_rows, 2 * have)
        shape = self.kv.shape
        grown = self.kv.new_zeros(*shape[:2], count, *shape[3:])
        grown[:, :, :have] = self.kv
        self.kv = grown
        self.lens += [0] * (count - have)

    def truncate(self, row: int, length: int) -> None:
        """Roll a row back to its first `length` pairs."""
        assert 0 <= length <= self.lens[row], "a row is rolled back to what it has"
        self.kv[:, :, row, length:].zero_()
        self.lens[row] = length

    def extend(
        self, rows: Sequence[int], counts: Sequence[int], backend: Backend, *, ahead: int = 0
    ) -> ForwardContext:
        """Return a context for `counts[i]` new tokens of row `rows[i]`, causal, packed.

        They come `ahead` slots after what is committed (the earlier tokens of a drafted chain).
        Nothing is committed by it: see `commit`.
        """
        starts = [self.lens[row] + ahead for row in rows]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self.reserve_slots(max(ends))
        max_len, device = self.kv.shape[3], self.kv.device
        positions = torch.cat([torch.arange(*span) for span in zip(starts, ends, strict=True)])
        row_of = torch.tensor(rows).repeat_interleave(torch.tensor(counts))
        blocks = torch.arange(max_len // BLOCK, dtype=torch.int32)
        tables = torch.tensor(rows, dtype=torch.int32).unsqueeze(1) * len(blocks) + blocks
        bounds = torch.tensor([0, *counts]).cumsum(0), torch.tensor(ends)
        query_starts, context_lens = (x.to(device, torch.int32) for x in bounds)
        ctx = ForwardContext(
            backend,
            positions.to(device),
            query_lens=list(counts),
            kv_lens=ends,
            num_decodes=len(rows) if max(counts) == 1 else 0,
            query_starts=query_starts,
            context_lens=context_lens,
            slot_mapping=(row_of * max_len + positions).to(device),
            block_tables=tables.to(device),
            kv=blocks_of(self.kv),
        )
        ctx.prepared = backend.prepare(ctx)
        return ctx

    def branch(
        self, rows: Sequence[int], ancestors: Tensor, depth: int | Tensor, backend: Backend
    ) -> ForwardContext:
        """Return a context for the newest nodes of drafted trees, m of each row.

        ancestors [R, m, N] bool: which of a tree's N nodes so far each sees, itself included; the
        m new ones are the last. depth: how many steps after the last committed pair they stand; an
        int, or one for each [m].
        """
        num_new, num_nodes = ancestors.shape[1:]
        lens = torch.tensor([self.lens[row] for row in rows])
        slots = lens.unsqueeze(1) + torch.arange(num_nodes - num_new, num_nodes)
        positions = lens.unsqueeze(1) + torch.as_tensor(depth).expand(num_new) - 1
        length = int(lens.max()) + num_nodes
        places = torch.arange(length) - lens.unsqueeze(1)  # a slot's node, [R, length]
        index = places.clamp(0, num_nodes - 1).unsqueeze(1).expand(-1, num_new, -1)
        tree = ancestors.cpu().gather(2, index) & ((places >= 0) & (places < num_nodes))[:, None]
        seen = tree | (places < 0)[:, None]
        self.reserve_slots(length)
        device = self.kv.device
        layout = Rows(
            kv=self.kv,
            rows=torch.tensor(rows, device=device),
            slots=slots.to(device),
            seen=seen.unsqueeze(1).to(device),
        )
        return ForwardContext(
            backend=RowsBackend(backend, layout),
            positions=positions.flatten().to(device),
            query_lens=[num_new] * len(rows),
            kv_lens=[self.lens[row] + num_nodes for row in rows],
        )

    def commit(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Count the tokens that the latest `extend` of these rows wrote as committed."""
        for row, count in zip(rows, counts, strict=True):
            self.lens[row] += count

    def reserve_slots(self, length: int) -> None:
        """Make room for so many slots of each row, at least; what is there stays."""
        have = self.kv.shape[3]
        if length <= have:
            return
        room = BLOCK * -(-max(length, 2 * have) // BLOCK)
        grown = self.kv.new_zeros(*self.kv.shape[:3], room, *self.kv.shape[4:])
        grown[:, :, :, :have] = self.kv
        self.kv = grown

    def describe(self) -> dict[str, Any]:
        """Return shape, memory, and what is committed."""
        layers, _, rows, max_len, heads, dim = self.kv.shape
        return {
            "layers": layers,
            "rows": rows,
            "heads": f"{heads}x{dim}",
            "max_len": max_len,
            "bytes": human_bytes(self.kv.numel() * self.kv.element_size()),
            "lens": self.lens,
        }


def blocks_of(kv: Tensor) -> list[Tensor]:
    """Return each layer of a head's cache as a layer of a paged one: [2, blocks, BLOCK, K, D]."""
    return [layer.view(2, -1, BLOCK, *layer.shape[3:]) for layer in kv]
