"""A plan as tensors: the packed token ids, and the `ForwardContext` that says where each token
goes.

All integers of a step are laid out in one host buffer and moved to the device in one copy. Called
by the runner once per step; it reads sequences and block tables and changes neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.batch import Backend, EmbeddedRows, ForwardContext, StepPlan
from workbench.cache import BlockManager, KVCache
from workbench.lora_batch import LoRABatch
from workbench.run.trees import logit_rows, rotary_positions, tree_masks

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
# Elements: kernels are compiled once more for pointers that 16 bytes do not divide.
_ALIGNMENT = 16


@dataclass(slots=True)
class StepInputs:
    """token_ids [T] int64; ctx; logit_rows [R] int64: packed positions that give logits, and the
    context of these alone."""

    token_ids: Tensor
    ctx: ForwardContext
    logit_rows: Tensor
    logit_ctx: ForwardContext


class _Placed(NamedTuple):
    """Where tokens lie in one KV group: slots [T], keys per row [S], tables [S, B]."""

    slots: Ints
    lens: Ints
    tables: Any


class InputBuilder:
    """Builds `StepInputs` for one cache and device."""

    def __init__(self, cache: KVCache, device: torch.device, *, rope_lens: bool = False) -> None:
        self.cache, self.device, self.needs_rope_lens = cache, device, rope_lens

    def build(self, plan: StepPlan, backend: Backend, lora: LoRABatch | None = None) -> StepInputs:
        """Return the tensors of a plan; see `ForwardContext` for their shapes."""
        starts = np.array(plan.starts, dtype=np.int64)
        num_new = np.array(plan.num_new, dtype=np.int64)
        rows = len(num_new)
        ends = num_new.cumsum()
        if plan.num_decodes == rows:  # one token a row, the step that must be quick
            row_of, positions = np.arange(rows), starts
        else:
            row_of = np.arange(rows).repeat(num_new)
            positions = np.arange(ends[-1]) - (ends - num_new - starts)[row_of]
        places = [
            self._placed(group, plan, positions, row_of, starts + num_new)
            for group in self.cache.blocks.groups
        ]
        trees = None
        if plan.drafts:
            positions = rotary_positions(plan, positions, ends - num_new)
            trees = tree_masks(plan, self.device)
        asked = logit_rows(plan, ends)
        columns = [self._token_ids(plan), positions, asked, *(p.slots for p in places)]
        if self.needs_rope_lens:
            prompts = np.array([s.num_prompt_tokens for s in plan.sequences])
            columns.append(np.maximum(prompts[row_of], positions + 1))
        token_ids, positions_t, logit_rows_t, *rest = self._move(columns, torch.int64)
        if plan.unread is not None:
            token_ids = plan.unread.clamp(min=0)
        rope_lens = rest.pop() if self.needs_rope_lens else None
        small = [np.concatenate(([0], ends))]
        small += [part for place in places for part in (place.lens, place.tables.ravel())]
        query_starts, *small_t = self._move(small, torch.int32)
        embeds = self._embeds(plan)
        contexts = []
        for i, place in enumerate(places):
            members = self.cache.groups[i].layers
            ctx = ForwardContext(
                backend=backend,
                positions=positions_t,
                query_lens=plan.num_new,
                kv_lens=place.lens.tolist(),
                num_decodes=plan.num_decodes,
                query_starts=query_starts,
                context_lens=small_t[2 * i],
                slot_mapping=rest[i],
                block_tables=small_t[2 * i + 1].view(rows, -1),
                kv=self.cache.layers,
                kv_scales=self.cache.layer_scales,
                first_layer=members[0] if members else 0,
                rope_lens=rope_lens,
                embeds=embeds,
                lora=lora,
                trees=trees,
            )
            ctx.prepared = backend.prepare(ctx)
            contexts.append(ctx)
        ctx = self._joined(contexts)
        after = ctx if lora is None or len(asked) == ends[-1] else ctx.at(asked.tolist())
        return StepInputs(token_ids, ctx, logit_rows_t, after)

    def _joined(self, contexts: list[ForwardContext]) -> ForwardContext:
        """Return the first group's context; with several groups, it leads to each layer's."""
        if len(contexts) > 1:
            contexts[0].by_layer = [None] * len(self.cache.layers)
            for group, ctx in zip(self.cache.groups[1:], contexts[1:], strict=True):
                for layer in group.layers:
                    contexts[0].by_layer[layer] = ctx
        return contexts[0]

    def _placed(
        self, group: BlockManager, plan: StepPlan, positions: Ints, row_of: Ints, stops: Ints
    ) -> _Placed:
        """Return where the plan's tokens lie in a group's tensor."""
        block_size, lens = group.block_size, stops
        tables = self._block_tables(group, plan)
        places = positions
        if group.window is not None or group.holed:  # tables lack what nobody looks at
            rows = [group.tables[sequence.sequence_id].begin for sequence in plan.sequences]
            begins = np.array(rows, dtype=np.int64) * block_size
            lens, places = stops - begins, positions - begins[row_of]
        index, offsets = np.divmod(places, block_size)
        return _Placed(tables[row_of, index] * np.int64(block_size) + offsets, lens, tables)

    def _token_ids(self, plan: StepPlan) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if plan.unread is not None:  # they are on the device already
            return np.zeros(len(plan.sequences), dtype=np.int64)
        flat: list[int] = []
        rows = zip(plan.sequences, plan.starts, plan.num_new, strict=True)
        for row, (sequence, start, count) in enumerate(rows):
            if count == 1:
                flat.append(sequence.token_ids[start])
            elif row in plan.drafts:
                flat.append(sequence.token_ids[start])
                flat.extend(plan.drafts[row].token_ids)
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

    def _block_tables(self, group: BlockManager, plan: StepPlan) -> Any:
        """Return the rows' block ids in the group's tensor, padded with 0: [S, B]."""
        rows = [group.tables[sequence.sequence_id].block_ids for sequence in plan.sequences]
        width = max(map(len, rows))
        if self.device.type == "cuda":  # kernels are compiled for strides that 16 divides
            width = -(-width // 16) * 16
        padded = np.zeros((len(rows), width), dtype=np.int32)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        first_id = group.pool.ids.start
        return padded if first_id == 0 else np.maximum(padded - first_id, 0)

    def _move(self, columns: list[Any], dtype: torch.dtype) -> list[Tensor]:
        """Move columns of integers to the device in one copy; each begins at an aligned address."""
        lens = [len(column) for column in columns]
        begins = [0, *accumulate(-(-count // _ALIGNMENT) * _ALIGNMENT for count in lens)]
        on_gpu = self.device.type == "cuda"
        packed = torch.zeros(begins[-1], dtype=dtype, pin_memory=on_gpu)
        array = packed.numpy()
        for begin, count, column in zip(begins, lens, columns, strict=False):
            array[begin : begin + count] = column
        moved = packed.to(self.device, non_blocking=True)
        return [moved[begin : begin + n] for begin, n in zip(begins, lens, strict=False)]
