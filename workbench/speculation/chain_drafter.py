"""`ChainDrafter`: extend a head's rows by what is new and draft chains, in passes of one shape.

What `heads.drive` does step by step, with lengths read on the device: then all of it is one CUDA
graph, where it would be some hundred launches that wait for the host. Rows are padded to a ladder,
tokens to the longest run that a draft can have left; what is written for the padding lies beyond
what is committed, or in a row that no sequence has. On a CPU the same passes run eagerly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.batch import Backend, ForwardContext
from workbench.run.capture import captured
from workbench.speculation.heads import SequentialHead
from workbench.speculation.heads.attention import Rows, RowsBackend, bare_context
from workbench.speculation.heads.cache import HeadCache

_LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class _Buffers(NamedTuple):
    """Inputs at fixed addresses: token_ids [R, W], states [R, W, width], rows, lens, counts [R]."""

    token_ids: Tensor
    states: Tensor
    rows: Tensor
    lens: Tensor
    counts: Tensor


class _Captured(NamedTuple):
    """A graph and where its replays leave [R, 2, length] float64: tokens and log-probabilities."""

    graph: Any
    out: Tensor
    kv: Tensor  # keeps the memory that the graph writes to


class ChainDrafter:
    """Drafts chains of `length` with one head. graphs: whether passes are captured (CUDA only)."""

    def __init__(
        self, head: SequentialHead, length: int, backend: Backend, *, graphs: bool
    ) -> None:
        self.head, self.length, self.backend, self.graphs = head, length, backend, graphs
        self.device = next(head.parameters()).device
        self.captures = 0
        self._buffers: dict[tuple[int, int], _Buffers] = {}
        self._captured: dict[tuple[int, int], _Captured] = {}

    @property
    def width(self) -> int:
        """How many pairs a row can take at once: those that a whole accepted draft leaves."""
        return self.length + 1

    def draft(
        self,
        cache: HeadCache,
        rows: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int],
        states: Tensor,
        scratch: int,
    ) -> tuple[list[list[int]], Tensor]:
        """Commit `counts[i]` pairs (1 to `width`) to row `rows[i]` and draft behind the last.

        token_ids and states [sum of counts, width of states] are packed. scratch: a row that no
        sequence has. Returns tokens of each row and log-probabilities [rows, length] on the CPU.
        """
        size = _LADDER[bisect_left(_LADDER, len(rows))]
        needed = max(cache.lens[row] for row in rows) + self.width + self.length
        cache.reserve_rows(scratch + 1)
        cache.reserve_slots(needed)
        buffers = self._fill(cache, size, rows, counts, token_ids, states, scratch)
        out = self._replay(cache, size, buffers) if self.graphs else self._run(cache.kv, buffers)
        cache.commit(rows, counts)
        found = out[: len(rows)].cpu()
        tokens: list[list[int]] = found[:, 0].long().tolist()
        return tokens, found[:, 1]

    def _fill(
        self,
        cache: HeadCache,
        size: int,
        rows: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int],
        states: Tensor,
        scratch: int,
    ) -> _Buffers:
        width, spare = self.width, size - len(rows)
        key = size, states.shape[1]
        buffers = self._buffers.get(key)
        if buffers is None:
            shape = size, width, states.shape[1]
            held = torch.zeros(shape, dtype=self.head.dtype, device=self.device)
            tokens = torch.zeros(size, width, dtype=torch.int64, device=self.device)
            buffers = _Buffers(tokens, held, *(torch.zeros_like(tokens[:, 0]) for _ in range(3)))
            self._buffers[key] = buffers
        places = [row * width + i for row, count in enumerate(counts) for i in range(count)]
        lens = [cache.lens[row] for row in rows]
        columns = [*rows, *[scratch] * spare, *lens, *[0] * spare, *counts, *[1] * spare]
        packed = torch.tensor([*columns, *places, *token_ids]).to(self.device, non_blocking=True)
        for buffer, column in zip(buffers[2:], packed[: 3 * size].view(3, size), strict=True):
            buffer.copy_(column)
        where, new = packed[3 * size :].chunk(2)
        buffers.token_ids.view(-1)[where] = new
        buffers.states.view(size * width, -1)[where] = states.to(self.head.dtype)
        return buffers

    def _replay(self, cache: HeadCache, size: int, buffers: _Buffers) -> Tensor:
        key = size, buffers.states.shape[2]
        held = self._captured.get(key)
        if held is None or held.kv is not cache.kv:
            held = self._captured[key] = self._capture(cache.kv, buffers)
        held.graph.replay()
        return held.out

    def _capture(self, kv: Tensor, buffers: _Buffers) -> _Captured:
        self.captures += 1
        graph, out = captured(lambda: self._run(kv, buffers), self.device)
        return _Captured(graph, out, kv)

    def _run(self, kv: Tensor, buffers: _Buffers) -> Tensor:
        """Return tokens and log-probabilities [R, 2, length] float64; waits for no host."""
        head, bare = self.head, bare_context(self.backend)
        size, width = buffers.token_ids.shape
        slots = buffers.lens.unsqueeze(1) + torch.arange(width, device=self.device)
        ctx = self._context(kv, buffers.rows, slots)
        features = head.features(buffers.states.flatten(0, 1), ctx)
        outs = head(buffers.token_ids.flatten(), features, ctx).view(size, width, -1)
        last = (buffers.counts - 1).view(size, 1, 1).expand(-1, -1, outs.shape[2])
        out = outs.gather(1, last)[:, 0]
        tokens, logprobs = [], []
        for ahead in range(self.length):
            logits = head.logits(out, bare).float()
            best = logits.argmax(-1, keepdim=True)
            tokens.append(head.target_ids(best[:, 0]))
            logprobs.append((logits.gather(1, best) - logits.logsumexp(1, keepdim=True))[:, 0])
            if ahead < self.length - 1:
                slots = (buffers.lens + buffers.counts + ahead).unsqueeze(1)
                ctx = self._context(kv, buffers.rows, slots)
                out = head(tokens[-1], head.carry(out, ctx), ctx)
        pair = torch.stack(tokens, 1).double(), torch.stack(logprobs, 1).double()
        return torch.stack(pair, 1)

    def _context(self, kv: Tensor, rows: Tensor, slots: Tensor) -> ForwardContext:
        """Return a context for tokens at slots [R, n] of these rows, which see what is before."""
        size, count = slots.shape
        length = kv.shape[4]
        seen = torch.arange(length, device=self.device) <= slots.unsqueeze(2)
        layout = Rows(
            kv=kv,
            rows=rows,
            row_of=rows.repeat_interleave(count, output_size=size * count),
            slot_of=slots.flatten(),
            packed=None,
            seen=seen.unsqueeze(1),
            length=length,
            num_rows=size,
        )
        backend = RowsBackend(self.backend, layout)
        return ForwardContext(backend, slots.flatten(), [count] * size, [length] * size)

    def clear(self) -> None:
        """Drop graphs and buffers."""
        self._captured.clear()
        self._buffers.clear()
