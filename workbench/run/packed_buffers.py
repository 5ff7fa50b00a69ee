"""The inputs of a tape at fixed addresses: decodes, and rows that verify a draft beside them.

A tape's calls are per token, so rows of any length lie packed in the same room. Made and written by
`workbench.run.tapes` alone.
"""

from __future__ import annotations

import numpy as np
import torch

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.run.decode_buffers import DecodeBuffers


class PackedBuffers(DecodeBuffers):
    """Static inputs for up to `rows` tokens, in as many rows or fewer; on a CPU.

    views: as for decodes, and query_starts [rows + 1] int32.
    """

    def __init__(self, rows: int, width: int, *, rope_lens: bool = False) -> None:
        super().__init__(rows, width, torch.device("cpu"), rope_lens=rope_lens)
        self.views["query_starts"] = torch.arange(rows + 1, dtype=torch.int32)
        self._starts = self.views["query_starts"].numpy()
        self._ragged = False  # whether rows of several tokens were written last

    def fill(self, plan: StepPlan, cache: KVCache) -> list[int]:
        """Write the rows of a plan; return how many keys each has, its new tokens counted.

        All rows decode or have a draft, and the cache has one KV group.
        """
        if plan.drafts:
            return self._fill_ragged(plan, cache)
        if self._ragged:
            self._starts[:] = np.arange(self.rows + 1)
            self._ragged = False
        return super().fill(plan, cache)[: len(plan.sequences)]

    def _fill_ragged(self, plan: StepPlan, cache: KVCache) -> list[int]:
        self._ragged, self._latest, self._filled = True, None, self.rows
        [group] = cache.blocks.groups
        arrays, size = self._arrays, group.block_size
        shifts = group.window is not None or group.holed  # tables lack what nobody looks at
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        lens: list[int] = []
        prompts: list[int] = []
        starts = [0]
        rows = zip(plan.sequences, plan.starts, plan.num_new, strict=True)
        for row, (sequence, start, count) in enumerate(rows):
            table = group.tables[sequence.sequence_id]
            ids, draft = table.block_ids, plan.drafts.get(row)
            first = start - table.begin * size if shifts else start
            token_ids.append(sequence.token_ids[start])
            positions.append(start)
            if draft is not None:
                token_ids += draft.token_ids
                positions += [start + depth for depth in draft.depths]
            slots += [ids[at // size] * size + at % size for at in range(first, first + count)]
            lens.append(first + count)
            prompts += [sequence.num_prompt_tokens] * count
            starts.append(starts[-1] + count)
            arrays["block_tables"][row, : len(ids)] = ids
        tokens = starts[-1]
        arrays["token_ids"][:tokens] = token_ids
        arrays["positions"][:tokens] = positions
        arrays["slot_mapping"][:tokens] = slots
        arrays["context_lens"][: len(lens)] = lens
        if "rope_lens" in arrays:
            arrays["rope_lens"][:tokens] = np.maximum(prompts, arrays["positions"][:tokens] + 1)
        self._starts[: len(starts)] = starts
        return lens
