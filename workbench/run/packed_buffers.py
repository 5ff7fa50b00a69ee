"""The inputs of rows that verify drafts, beside decodes, at fixed addresses: for graph or tape.

Rows of any length lie packed in the same room. Where it is larger than the batch, rows that stand
empty have no tokens, and tokens of no row no slot: kernels read and write nothing for them. Made
and written by `workbench.run.graphs` and `workbench.run.tapes` alone.
"""

from __future__ import annotations

from operator import lt

import numpy as np
import torch

from workbench.batch import Backend, ForwardContext, StepPlan, TreeMasks
from workbench.cache import KVCache
from workbench.run.decode_buffers import NO_SLOT, DecodeBuffers, LatestRows
from workbench.run.trees import mask_words


class PackedBuffers(DecodeBuffers):
    """Static inputs for up to `tokens` tokens, in `rows` rows or fewer (None: as many).

    words: of a token's mask, where drafts may be trees. views: as for decodes, with token_ids,
    positions, slot_mapping and rope_lens [tokens]; query_starts [rows + 1] and, with words,
    ancestors [tokens, words] int32.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        device: torch.device,
        *,
        rows: int | None = None,
        words: int = 0,
        rope_lens: bool = False,
    ) -> None:
        rows, self.words = tokens if rows is None else rows, words
        more: dict[str, tuple[int, ...]] = {"query_starts": (rows + 1,)}
        if words:
            more["ancestors"] = (tokens, words)
        super().__init__(rows, width, device, rope_lens=rope_lens, tokens=tokens, more=more)
        self._arrays["query_starts"][:] = np.arange(rows + 1)
        self._ragged = False  # whether rows of several tokens were written last
        self.chunk_tokens = tokens

    def fill(self, plan: StepPlan, cache: KVCache) -> list[int]:
        """Write the rows of a plan; return how many keys each has, its new tokens counted.

        All rows decode or have a draft, and the cache has one KV group.
        """
        if plan.drafts:
            return self._fill_ragged(plan, cache)
        if self._ragged:
            self._arrays["query_starts"][:] = np.arange(self.rows + 1)
            self._ragged = False
        return super().fill(plan, cache)[: len(plan.sequences)]

    @property
    def _query_lens(self) -> list[int]:
        return [1] * (self.rows - 1) + [self.tokens - self.rows + 1]

    def by_kind(self, lens: list[int]) -> tuple[list[int], list[int]]:
        """Return no decodes, and for every row that there is room for a length: all rows have older
        tokens, however few new ones there are."""
        padded = [*lens, *[0] * (self.rows - len(lens))]
        return [], [max(n, new + 1) for n, new in zip(padded, self._query_lens, strict=True)]

    def context(
        self, backend: Backend, kv: list[torch.Tensor], chunk_lens: list[int]
    ) -> ForwardContext:
        """Return a context for as much as there is room for: what it launches depends on that and
        `chunk_lens`, of `by_kind`; lengths are read on the device."""
        views, rows = self.views, self.rows
        ctx = ForwardContext(
            backend=backend,
            positions=views["positions"],
            query_lens=self._query_lens,
            kv_lens=chunk_lens,
            query_starts=views["query_starts"],
            context_lens=views["context_lens"],
            slot_mapping=views["slot_mapping"],
            block_tables=views["block_tables"],
            kv=kv,
            rope_lens=views.get("rope_lens"),
            trees=TreeMasks(0, rows, views["ancestors"]) if self.words else None,
        )
        ctx.prepared = backend.prepare(ctx)
        return ctx

    def _fill_ragged(self, plan: StepPlan, cache: KVCache) -> list[int]:
        if self._moved is not None:
            self._moved.synchronize()
        self._ragged, self._filled = True, self.rows
        [group] = cache.blocks.groups
        arrays, size = self._arrays, group.block_size
        tables = [group.tables[sequence.sequence_id] for sequence in plan.sequences]
        begins = [0] * len(tables)
        if group.window is not None or group.holed:  # tables lack what nobody looks at
            begins = [table.begin for table in tables]
        self._write_ends(plan, begins, [table.block_ids for table in tables], size)
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        lens: list[int] = []
        starts = [0]
        for row, (sequence, start, count, table, begin) in enumerate(
            zip(plan.sequences, plan.starts, plan.num_new, tables, begins, strict=True)
        ):
            draft, place = plan.drafts.get(row), start - begin * size
            token_ids.append(sequence.token_ids[start])
            if draft is not None:
                token_ids += draft.token_ids
            if draft is None or draft.is_chain:
                positions += range(start, start + count)
            else:
                positions += [start, *[start + depth for depth in draft.depths]]
            lens.append(place + count)
            starts.append(starts[-1] + count)
            while place < lens[-1]:  # a run of slots in each block
                first = table.block_ids[place // size] * size + place % size
                run = min(size - place % size, lens[-1] - place)
                slots += range(first, first + run)
                place += run
        rows, tokens = len(lens), starts[-1]
        arrays["token_ids"][:tokens] = token_ids
        arrays["positions"][:tokens] = positions
        arrays["slot_mapping"][:tokens] = slots
        arrays["slot_mapping"][tokens:] = NO_SLOT
        arrays["context_lens"][:rows] = lens
        arrays["context_lens"][rows:] = 0
        arrays["query_starts"][: rows + 1] = starts
        arrays["query_starts"][rows + 1 :] = tokens
        if "rope_lens" in arrays:
            prompts = [sequence.num_prompt_tokens for sequence in plan.sequences]
            prompt_lens = np.repeat(prompts, plan.num_new)
            arrays["rope_lens"][:tokens] = np.maximum(prompt_lens, arrays["positions"][:tokens] + 1)
        if self.words:
            arrays["ancestors"][: plan.num_decodes] = [1] + [0] * (self.words - 1)
            arrays["ancestors"][plan.num_decodes : tokens] = mask_words(plan, self.words)
        return lens

    def _write_ends(
        self, plan: StepPlan, begins: list[int], block_ids: list[list[int]], size: int
    ) -> None:
        """Write the rows' block ids: of rows that were in the step before this one, from the block
        on that this began to write to. What lies before it stays as it was.

        begins: how many blocks each row's table lacks.
        """
        latest, array = self._latest, self._arrays["block_tables"]
        self._latest = None  # what an interrupt leaves half written is written again
        changed = [0] * len(block_ids)
        follows = latest is not None and latest.leads_to(plan, begins)
        if latest is not None and follows and all(map(lt, latest.starts, plan.starts)):
            pairs = zip(latest.starts, begins, strict=True)
            changed = [start // size - begin for start, begin in pairs]
        for row, (ids, first) in enumerate(zip(block_ids, changed, strict=True)):
            array[row, first : len(ids)] = ids[first:]
        self._latest = LatestRows.of(plan, begins)
