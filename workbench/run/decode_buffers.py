"""The inputs of a decode batch at fixed addresses, as a CUDA graph or a tape needs them.

`DecodeBuffers` holds room for a number of rows and a width of block tables in one pinned host
buffer and its twin on the device. `fill` writes a plan's rows, `upload` moves all in one
asynchronous copy. Rows that stand empty have no context and slot -1: the kernels read and write
nothing for them. Made and written by `workbench.run.graphs` and `workbench.run.tapes` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.request import Sequence

_ALIGNMENT = 64  # bytes: kernels are compiled for pointers that 16 divides
NO_SLOT = -1


class LatestRows(NamedTuple):
    """What was filled in last: a step, its rows, and of each its start and how many blocks its
    table lacked."""

    step: int
    sequences: list[Sequence]
    starts: list[int]
    begins: list[int]

    @classmethod
    def of(cls, plan: StepPlan, begins: list[int]) -> LatestRows:
        """Note a plan's rows."""
        return cls(plan.step, list(plan.sequences), list(plan.starts), begins)

    def leads_to(self, plan: StepPlan, begins: list[int]) -> bool:
        """Whether a plan is the next step, of the same rows, whose tables lack as many blocks."""
        return (self.step + 1, self.begins, self.sequences) == (plan.step, begins, plan.sequences)


class DecodeBuffers:
    """Static inputs for up to `rows` decodes whose block tables are at most `width` blocks.

    views: token_ids, positions, slot_mapping and, if wanted, rope_lens [rows] int64, context_lens
    [rows] and block_tables [rows, width] int32, on the device. On a CPU the two buffers are one.
    """

    decodes = 0  # where prompts may come, for how many decodes there is room before them

    def __init__(
        self,
        rows: int,
        width: int,
        device: torch.device,
        *,
        rope_lens: bool = False,
        tokens: int | None = None,
        more: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """tokens: how many there is room for, if not one a row. more: shapes of further int32."""
        self.rows, self.width = rows, width
        self.tokens = rows if tokens is None else tokens
        long, short = torch.int64, torch.int32
        names = ["token_ids", "positions", "slot_mapping", *(["rope_lens"] if rope_lens else [])]
        sections: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            **dict.fromkeys(names, (long, (self.tokens,))),
            "context_lens": (short, (rows,)),
            "block_tables": (short, (rows, width)),
            **{name: (short, shape) for name, shape in (more or {}).items()},
        }
        self._own = [name for name in sections if name not in (more or {})]
        places, size = {}, 0
        for name, (dtype, shape) in sections.items():
            places[name] = slice(size, size + dtype.itemsize * int(np.prod(shape)))
            size = -(-places[name].stop // _ALIGNMENT) * _ALIGNMENT
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.zeros(size, dtype=torch.uint8, device=device) if on_gpu else self._host
        self._moved = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        host, views = {}, {}
        for name, (dtype, shape) in sections.items():
            host[name] = self._host[places[name]].view(dtype).view(shape).numpy()
            views[name] = self._device[places[name]].view(dtype).view(shape)
        self._arrays: dict[str, np.ndarray[Any, Any]] = host
        self.views: dict[str, Tensor] = views
        self._numbers = np.arange(rows)
        self._filled = rows  # how many rows hold something, or once did
        self._latest: LatestRows | None = None

    chunk_tokens = 0  # room for tokens of rows that have several

    def by_kind(self, lens: list[int]) -> tuple[list[int], list[int]]:
        """Return the lengths that decide launches, of what `fill` returned: of decodes, and of all
        rows behind them."""
        return lens, []

    def fill(self, plan: StepPlan, cache: KVCache) -> list[int]:
        """Write the rows of a plan of decodes; return the context length of each row, empty ones 0.

        The cache must have one KV group. Waits for the copy of what was here before, should it
        still be under way.
        """
        if self._moved is not None:
            self._moved.synchronize()
        arrays, rows = self._arrays, len(plan.sequences)
        assert rows <= self.rows, "more rows than the buffers hold"
        starts = np.array(plan.starts, dtype=np.int64)
        [group] = cache.blocks.groups
        tables = [group.tables[sequence.sequence_id] for sequence in plan.sequences]
        begins, places = [0] * rows, starts
        if group.window is not None or group.holed:  # tables lack what nobody looks at
            begins = [table.begin for table in tables]
            places = starts - np.array(begins, dtype=np.int64) * group.block_size
        index, offsets = np.divmod(places, group.block_size)
        blocks = self._write_tables(plan, begins, index, [table.block_ids for table in tables])
        pairs = zip(plan.sequences, plan.starts, strict=True)
        if plan.unread is None:
            arrays["token_ids"][:rows] = [sequence.token_ids[start] for sequence, start in pairs]
        arrays["positions"][:rows] = starts
        arrays["slot_mapping"][:rows] = blocks * group.block_size + offsets
        arrays["context_lens"][:rows] = places + 1
        if "rope_lens" in arrays:
            prompts = [sequence.num_prompt_tokens for sequence in plan.sequences]
            arrays["rope_lens"][:rows] = np.maximum(prompts, starts + 1)
        if rows < self._filled:
            for name in self._own:
                arrays[name][rows:] = NO_SLOT if name == "slot_mapping" else 0
        self._filled = rows
        return [*(places + 1).tolist(), *[0] * (self.rows - rows)]

    def _write_tables(
        self, plan: StepPlan, begins: list[int], index: Any, block_ids: list[list[int]]
    ) -> np.ndarray[Any, Any]:
        """Write the rows' block ids, all of them or those of this step's blocks alone; return
        these.

        begins: how many blocks each row's table lacks. From one step to the next of the same
        decodes, each a token further, a table that lacks as many as before can change only where
        the new token goes: there a block is added, or a shared one copied.
        """
        latest = self._latest
        self._latest = None  # what an interrupt leaves half written is written again
        own = [ids[i] for ids, i in zip(block_ids, index.tolist(), strict=True)]
        array = self._arrays["block_tables"]
        follows = latest is not None and latest.leads_to(plan, begins)
        if latest is not None and follows and latest.starts == [n - 1 for n in plan.starts]:
            array[self._numbers[: len(own)], index] = own
        else:
            for row, ids in enumerate(block_ids):
                array[row, : len(ids)] = ids[: self.width]
        self._latest = LatestRows.of(plan, begins)
        return np.array(own, dtype=np.int64)

    def upload(self, plan: StepPlan) -> None:
        """Start the copy to the device on the current stream; token ids that are there already
        follow it."""
        if self._moved is not None:
            self._device.copy_(self._host, non_blocking=True)
            self._moved.record()
        if plan.unread is not None:
            token_ids = self.views["token_ids"][: len(plan.sequences)]
            torch.clamp(plan.unread, min=0, out=token_ids)

    def forget(self) -> None:
        """Write whole tables next: what was filled in last is not the step that was taken."""
        self._latest = None
