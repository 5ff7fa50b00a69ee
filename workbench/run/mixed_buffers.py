"""The inputs of decodes and a few prompts, or parts of some, at fixed addresses: for a CUDA graph.

Behind the room for decodes there is room for rows with several new tokens. Rows that stand empty
have no tokens, and tokens of no row no slot: kernels read and write nothing for them. Made and
written by `workbench.run.graphs` alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from workbench.batch import Backend, ForwardContext, StepPlan
from workbench.cache import KVCache
from workbench.run.decode_buffers import NO_SLOT, DecodeBuffers


class MixedBuffers(DecodeBuffers):
    """Static inputs for up to `decodes` decodes and, behind these, `rows` rows of `tokens` tokens.

    views: as for decodes, of all rows and tokens; query_starts [decodes + rows + 1] and logit_rows
    [decodes + rows] int32: the places of the tokens that give logits, those of the plan first.
    """

    def __init__(
        self,
        decodes: int,
        width: int,
        device: torch.device,
        *,
        rows: int,
        tokens: int,
        rope_lens: bool = False,
    ) -> None:
        self.decodes, self.chunk_tokens, total = decodes, tokens, decodes + rows
        more = {"query_starts": (total + 1,), "logit_rows": (total,)}
        room: Any = {"tokens": decodes + tokens, "more": more}
        super().__init__(total, width, device, rope_lens=rope_lens, **room)
        self._arrays["query_starts"][:decodes] = np.arange(decodes)

    def fill(self, plan: StepPlan, cache: KVCache) -> list[int]:
        """Write the rows of a plan; return the context length of each row, empty ones 0.

        The rows that are no decodes are prompts, and the cache has one KV group.
        """
        lens = super().fill(plan.only_decodes(), cache)[: self.decodes]
        lens += self._fill_chunks(plan, cache)
        return [*lens, *[0] * (self.rows - len(lens))]

    def _fill_chunks(self, plan: StepPlan, cache: KVCache) -> list[int]:
        """Write the rows behind the decodes, each from the token on where the last one ended."""
        arrays, first, count = self._arrays, self.decodes, plan.num_decodes
        [group] = cache.blocks.groups
        size, stop = group.block_size, first
        ends: list[int] = []
        lens: list[int] = []
        arrays["slot_mapping"][first:] = NO_SLOT
        for name in {"token_ids", "positions", "rope_lens"} & arrays.keys():
            arrays[name][first:] = 0
        parts = list(zip(plan.sequences, plan.starts, plan.num_new, strict=True))[count:]
        for row, (sequence, start, num_new) in enumerate(parts, start=first):
            table, tokens = group.tables[sequence.sequence_id], slice(stop, stop + num_new)
            positions = np.arange(start, start + num_new)
            places = positions - table.begin * size
            block_ids = np.array(table.block_ids, dtype=np.int64)
            arrays["token_ids"][tokens] = sequence.token_ids[start : start + num_new]
            arrays["positions"][tokens] = positions
            arrays["slot_mapping"][tokens] = block_ids[places // size] * size + places % size
            if "rope_lens" in arrays:
                prompt = sequence.num_prompt_tokens
                arrays["rope_lens"][tokens] = np.maximum(prompt, positions + 1)
            arrays["block_tables"][row, : len(block_ids)] = block_ids
            stop += num_new
            ends.append(stop)
            lens.append(int(places[-1]) + 1)
        used = first + len(parts)
        starts = arrays["query_starts"]
        starts[first], starts[first + 1 : used + 1], starts[used + 1 :] = first, ends, stop
        arrays["context_lens"][first:used] = lens
        arrays["context_lens"][used:] = 0
        asked = [row if row < count else ends[row - count] - 1 for row in plan.sampled]
        arrays["logit_rows"][: len(asked)] = asked
        return lens

    def asked(self, plan: StepPlan) -> list[int]:
        """Return the places of the tokens that give logits, of the plan that was filled in."""
        places: list[int] = self._arrays["logit_rows"][: len(plan.sampled)].tolist()
        return places

    def by_kind(self, lens: list[int]) -> tuple[list[int], list[int]]:
        """Return the lengths of decodes, and of the rows behind: there may be older tokens."""
        return lens[: self.decodes], [max(n, self.chunk_tokens + 1) for n in lens[self.decodes :]]

    def context(
        self,
        backend: Backend,
        kv: list[torch.Tensor],
        lens: list[int],
        chunk_lens: list[int],
    ) -> ForwardContext:
        """Return a context for as much as there is room for; lengths as of `by_kind` decide what is
        launched, and all are read on the device."""
        views, rows, tokens = self.views, self.rows - self.decodes, self.chunk_tokens
        ctx = ForwardContext(
            backend=backend,
            positions=views["positions"],
            query_lens=[1] * self.decodes + [tokens] + [0] * (rows - 1),
            kv_lens=lens + chunk_lens,
            num_decodes=self.decodes,
            query_starts=views["query_starts"],
            context_lens=views["context_lens"],
            slot_mapping=views["slot_mapping"],
            block_tables=views["block_tables"],
            kv=kv,
            rope_lens=views.get("rope_lens"),
            padded=True,
        )
        ctx.prepared = backend.prepare(ctx)
        return ctx
