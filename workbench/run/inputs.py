"""A plan as tensors: the packed token ids, and the `ForwardContext` that says where each token
goes.

All integers of a step are laid out in one host buffer and moved to the device in one copy. Called
by the runner once per step; it reads sequences and block tables and changes neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from workbench.batch import Backend, EmbeddedRows, ForwardContext, StepPlan
from workbench.cache import KVCache


@dataclass(slots=True)
class StepInputs:
    """token_ids [T] int64; ctx; logit_rows [R] int64: packed positions that sample."""

    token_ids: Tensor
    ctx: ForwardContext
    logit_rows: Tensor


class InputBuilder:
    """Builds `StepInputs` for one cache and device."""

    def __init__(self, cache: KVCache, device: torch.device, *, rope_lens: bool = False) -> None:
        self.cache, self.device, self.needs_rope_lens = cache, device, rope_lens

    def build(self, plan: StepPlan, backend: Backend) -> StepInputs:
        """Return the tensors of a plan; see `ForwardContext` for their shapes."""
        starts = np.array(plan.starts, dtype=np.int64)
        num_new = np.array(plan.num_new, dtype=np.int64)
        tables = self._block_tables(plan)
        rows = len(num_new)
        ends = num_new.cumsum()
        if plan.num_decodes == rows:  # one token a row, the step that must be quick
            row_of, positions = np.arange(rows), starts
        else:
            row_of = np.arange(rows).repeat(num_new)
            positions = np.arange(ends[-1]) - (ends - num_new - starts)[row_of]
        index, offsets = np.divmod(positions, self.cache.block_size)
        slots = tables[row_of, index] * np.int64(self.cache.block_size) + offsets
        logit_rows = ends[plan.sampled] - 1
        columns = [self._token_ids(plan), positions, slots, logit_rows]
        if self.needs_rope_lens:
            prompts = np.array([s.num_prompt_tokens for s in plan.sequences])
            columns.append(np.maximum(prompts[row_of], positions + 1))
        token_ids, positions_t, slots_t, logit_rows_t, *rope = self._move(columns)
        kv_lens = starts + num_new
        small = np.concatenate(([0], ends, kv_lens, tables.ravel())).astype(np.int32)
        small_t = torch.from_numpy(small).to(self.device, non_blocking=True)
        ctx = ForwardContext(
            backend=backend,
            positions=positions_t,
            query_lens=plan.num_new,
            kv_lens=kv_lens.tolist(),
            num_decodes=plan.num_decodes,
            query_starts=small_t[: rows + 1],
            context_lens=small_t[rows + 1 : 2 * rows + 1],
            slot_mapping=slots_t,
            block_tables=small_t[2 * rows + 1 :].view(rows, -1),
            kv=self.cache.layers,
            rope_lens=rope[0] if rope else None,
            embeds=self._embeds(plan),
        )
        ctx.prepared = backend.prepare(ctx)
        return StepInputs(token_ids, ctx, logit_rows_t)

    def _token_ids(self, plan: StepPlan) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        flat: list[int] = []
        for sequence, start, count in zip(plan.sequences, plan.starts, plan.num_new, strict=True):
            if count == 1:
                flat.append(sequence.token_ids[start])
            else:
                flat.extend(sequence.token_ids[start : start + count])
        return np.array(flat, dtype=np.int64)

    def _embeds(self, plan: StepPlan) -> EmbeddedRows | None:
        """Return the embeddings among this step's tokens; None where there are none."""
        embedded = [i for i, s in enumerate(plan.sequences) if s.request.embeds is not None]
        if not embedded:
            return None
        offsets = list(accumulate(plan.num_new, initial=0))
        places: list[int] = []
        rows: list[Tensor] = []
        for i in embedded:
            embeds, start = plan.sequences[i].request.embeds, plan.starts[i]
            assert embeds is not None
            span = embeds.within(start, start + plan.num_new[i])
            places += [offsets[i] + position - start for position in embeds.positions[span]]
            rows.append(embeds.rows[span])
        if not places:
            return None
        packed = torch.tensor(places).to(self.device, non_blocking=True)
        return EmbeddedRows(packed, torch.cat(rows).to(self.device, non_blocking=True))

    def _block_tables(self, plan: StepPlan) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """Return the rows' block ids, padded with 0: [S, B]."""
        tables = self.cache.blocks.tables
        rows = [tables[sequence.sequence_id].block_ids for sequence in plan.sequences]
        padded = np.zeros((len(rows), max(map(len, rows))), dtype=np.int32)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        return padded

    def _move(self, columns: list[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> list[Tensor]:
        """Move int64 columns to the device in one copy."""
        packed = torch.from_numpy(np.concatenate(columns))
        moved = packed.to(self.device, non_blocking=True)
        return list(torch.split(moved, [len(column) for column in columns]))
