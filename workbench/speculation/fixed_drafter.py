"""`FixedDrafter`: extend a head's rows by what is new and draft, in passes of one shape.

All of a draft (see `fixed_passes`) is then one CUDA graph, where it would be some hundred launches
that wait for the host, and one thing is read back. Rows are padded to a ladder, tokens to the
longest run that a draft can have left; what is written for the padding lies beyond what is
committed, or in a row that no sequence has. On a CPU the same passes run eagerly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.batch import Backend
from workbench.run.capture import captured
from workbench.speculation.fixed_passes import Inputs, PagedRows, draft, tail_blocks
from workbench.speculation.heads import SequentialHead, TreeShape
from workbench.speculation.heads.cache import BLOCK, HeadCache
from workbench.speculation.heads.tree import DraftTree

_LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_SELDOM = 8  # so often a lesser depth is drafted as the whole one before it has a graph


class New(NamedTuple):
    """What is new of R rows of a cache: `counts[i]` pairs of row `rows[i]`, 1 to `width` each.

    token_ids and states [sum of counts, width of states] are packed; depths: how deep each draft
    may be.
    """

    rows: Sequence[int]
    counts: Sequence[int]
    token_ids: Sequence[int]
    states: Tensor
    depths: Sequence[int]


class _Captured(NamedTuple):
    """A graph and where its replays leave [R, 3, N] float64: tokens, parents and scores."""

    graph: Any
    out: Tensor
    kv: Tensor  # keeps the memory that the graph writes to


class FixedDrafter:
    """Drafts trees of one shape with one head. graphs: whether passes are captured (CUDA only).

    captures: how many graphs were made.
    """

    def __init__(
        self, head: SequentialHead, shape: TreeShape, backend: Backend, *, graphs: bool
    ) -> None:
        self.head, self.shape, self.backend, self.graphs = head, shape, backend, graphs
        backend.check_model(head.config, BLOCK)
        self.device = next(head.parameters()).device
        self.captures = 0
        self._inputs: dict[tuple[int, int], Inputs] = {}
        self._captured: dict[tuple[int, int, int], _Captured] = {}
        self._wanted: Counter[int] = Counter()  # depths, and how often the whole one stood in

    @property
    def width(self) -> int:
        """How many pairs a row can take at once: those that a whole accepted draft leaves."""
        return self.shape.depth + 1

    def draft(self, cache: HeadCache, new: New, scratch: int) -> DraftTree:
        """Commit what is new of some rows and draft behind the last pair of each.

        scratch: a row that no sequence has, nor any after it. Returns trees on the CPU, parents
        [R, N].
        """
        size = _LADDER[bisect_left(_LADDER, len(new.rows))]
        longest = max(cache.lens[row] for row in new.rows)
        cache.reserve_slots(longest + self.width + self.shape.depth + BLOCK)
        tails = size * self.shape.top_k * tail_blocks(self.shape)
        cache.reserve_rows(scratch + 1 - (-tails * BLOCK // cache.kv.shape[3]))
        inputs = self._fill(cache, size, new, scratch)
        shape = replace(self.shape, depth=self._depth(max(new.depths)))
        if self.graphs:
            out = self._replay(cache.kv, inputs, shape)
        else:
            before = [cache.lens[row] for row in new.rows] + [0] * (size - len(new.rows))
            counts = [*new.counts, *[1] * (size - len(new.rows))]
            after = [length + count for length, count in zip(before, counts, strict=True)]
            out = self._run(cache.kv, inputs, shape, (before, after))
        cache.commit(new.rows, new.counts)
        tokens, parents, scores = out[: len(new.rows)].cpu().unbind(1)
        return DraftTree(tokens.long(), parents.long(), scores)

    def _depth(self, most: int) -> int:
        """Return how deep to draft where no draft may be deeper than `most`."""
        whole = self.shape.depth
        if most >= whole:
            return whole
        depth = min(whole, _DEPTHS[min(bisect_left(_DEPTHS, most), len(_DEPTHS) - 1)])
        self._wanted[depth] += 1
        return depth if not self.graphs or self._wanted[depth] > _SELDOM else whole

    def _fill(self, cache: HeadCache, size: int, new: New, scratch: int) -> Inputs:
        width, spare = self.width, size - len(new.rows)
        key = size, new.states.shape[1]
        inputs = self._inputs.get(key)
        if inputs is None:
            shape = size, width, new.states.shape[1]
            held = torch.zeros(shape, dtype=self.head.dtype, device=self.device)
            tokens = torch.zeros(size, width, dtype=torch.int64, device=self.device)
            inputs = self._inputs[key] = Inputs(tokens, held, tokens.new_zeros(4, size))
        places: list[int] = []
        for start, count in zip(range(0, size * width, width), new.counts, strict=False):
            places += range(start, start + count)
        lens = [cache.lens[row] for row in new.rows]
        columns = [*new.rows, *[scratch] * spare, *lens, *[0] * spare]
        columns += [*new.counts, *[1] * spare, *new.depths, *[1] * spare]
        # By way of numpy: torch takes ten times as long for a list.
        packed = torch.from_numpy(np.array([*columns, *places, *new.token_ids]))
        packed = packed.to(self.device, non_blocking=True)
        inputs.columns.copy_(packed[: 4 * size].view(4, size))
        middle = 4 * size + len(places)
        where, token_ids = packed[4 * size : middle], packed[middle:]
        inputs.token_ids.view(-1).index_copy_(0, where, token_ids)
        states = new.states.to(self.head.dtype)
        inputs.states.view(size * width, -1).index_copy_(0, where, states)
        return inputs

    def _replay(self, kv: Tensor, inputs: Inputs, shape: TreeShape) -> Tensor:
        key = len(inputs.states), inputs.states.shape[2], shape.depth
        held = self._captured.get(key)
        if held is None or held.kv is not kv:
            self.captures += 1
            graph, out = captured(lambda: self._run(kv, inputs, shape, None), self.device)
            held = self._captured[key] = _Captured(graph, out, kv)
        held.graph.replay()
        return held.out

    def _run(
        self,
        kv: Tensor,
        inputs: Inputs,
        shape: TreeShape,
        lens: tuple[list[int], list[int]] | None,
    ) -> Tensor:
        tree = draft(self.head, shape, inputs, PagedRows(kv, self.backend, lens))
        return torch.stack([part.double() for part in tree], 1)

    def clear(self) -> None:
        """Drop graphs and buffers."""
        self._captured.clear()
        self._inputs.clear()
        self._wanted.clear()
