"""CUDA graphs for decode batches: one launch in place of some hundred.

A batch in which every row decodes is padded to the next size of a ladder and replayed from a graph
of that size, captured the first time it is wanted; all graphs share one memory pool. With drafts to
verify, rows and tokens are padded, each to a ladder of their own. Everything else runs eagerly, and
`why_eager` says why. `run_padded` is the same pass without a graph: the oracle. Called by the
runner; the graph ends with the hidden states, logits are made outside it.
"""

from __future__ import annotations

import threading
import time
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.batch import Backend, ForwardContext, StepPlan
from workbench.cache import KVCache
from workbench.describe import Described
from workbench.layers.probe import holding
from workbench.lora import AdapterBatches, ReplayedAdapters
from workbench.models import DecoderLM
from workbench.run.decode_buffers import DecodeBuffers
from workbench.run.decodes import PlainDecodes
from workbench.run.graph_sizes import LADDER, TOKENS
from workbench.run.packed_buffers import PackedBuffers
from workbench.run.trees import num_words
from workbench.run.watch import ModelWatch

_MIN_WIDTH = 64  # blocks of a table: narrower ones share a graph


@dataclass(slots=True)
class DecodeGraph:
    """A captured pass. hidden [size, hidden] is where its replays leave their result; held: reads
    what they leave at points of the model."""

    graph: torch.cuda.CUDAGraph
    hidden: Tensor
    ctx: ForwardContext
    held: dict[str, Callable[[], Tensor]]


class Filled(NamedTuple):
    """A plan in static buffers, its adapters, and lengths that decide how it is computed."""

    buffers: DecodeBuffers
    lora: ReplayedAdapters | None
    lens: list[int]


class DecodeGraphs(Described):
    """The graphs of one model over one cache.

    sizes: batch sizes to capture, rising. insist: whether a capture that fails raises; else it
    warns, and the backend runs eagerly from then on. points: of the model, whose rows in the latest
    pass are in `states`. `captures`, `capture_seconds` and `replays` count; `eager` counts the
    passes that were not replayed, by reason.
    """

    def __init__(
        self,
        model: DecoderLM,
        cache: KVCache,
        sizes: tuple[int, ...] = LADDER,
        *,
        insist: bool = False,
    ) -> None:
        self.model, self.cache, self.sizes, self.insist = model, cache, sizes, insist
        self.device = cache.tensors[0].device
        self.captures, self.capture_seconds, self.replays = 0, 0.0, 0
        self.eager: Counter[str] = Counter()
        self.latest: DecodeGraph | None = None
        self.adapters: AdapterBatches | None = None  # makes those of a plan, if there may be any
        self._loras: dict[int, ReplayedAdapters] = {}
        self.points: tuple[str, ...] = ()
        self.states: dict[str, Tensor] = {}
        self._watch = ModelWatch(model)
        self._graphs: dict[Any, DecodeGraph] = {}
        self._buffers: dict[tuple[int, int, int, int], DecodeBuffers] = {}
        self._backend: Backend | None = None
        self._failure = ""  # why a capture with this backend failed
        self._pool: Any = None
        self._decodes = PlainDecodes(cache, self._watch)

    def why_eager(self, plan: StepPlan, backend: Backend) -> str:
        """Return why a plan cannot be replayed; empty if it can."""
        if not backend.capturable:
            return f"the {backend.name} backend cannot be captured"
        if self._failure and backend is self._backend:
            return self._failure
        if plan.drafts and plan.num_tokens > TOKENS[-1]:
            return f"more than {TOKENS[-1]} tokens"
        return self._decodes.why_not(plan, max_rows=self.sizes[-1])

    def run(self, plan: StepPlan, backend: Backend) -> tuple[Tensor, ForwardContext]:
        """Replay a plan for which `why_eager` is empty; return hidden states [tokens, hidden].

        They are overwritten by the next replay. The graph is captured first where there is none.
        """
        if backend is not self._backend:
            self.clear()
            self._backend = backend
        captured = self._replay(plan, backend)
        # Asked while the GPU is busy: what is to be done again writes the same slots.
        if captured is not None and self._watch.changed:
            self.clear()
            captured = self._replay(plan, backend)
        if captured is None:
            return self.run_padded(plan, backend)
        self.replays += 1
        self.latest = captured
        tokens = plan.num_tokens
        if self.points:  # copied: the next replay writes over them
            self.states = {point: rows()[:tokens] for point, rows in captured.held.items()}
        return captured.hidden[:tokens], captured.ctx

    def _replay(self, plan: StepPlan, backend: Backend) -> DecodeGraph | None:
        """Start a plan's pass and return its graph; None if it cannot be captured."""
        filled = self._fill(plan, backend)
        buffers, lora, lens = filled
        place = None if lora is None else lora.launches
        shape = buffers.rows, buffers.width, buffers.tokens, _words(buffers), self.points
        key = place, *shape, backend.graph_key(lens, self.cache.layers[0])
        captured = self._graphs.get(key)
        if captured is None:
            if place is not None:
                self._drop_stale(place[0])
            try:
                captured = self._graphs[key] = self._capture(filled, backend)
            except RuntimeError as error:
                if self.insist:
                    raise
                self._give_up(error)
                return None
        captured.graph.replay()
        return captured

    def _give_up(self, error: RuntimeError) -> None:
        """Run eagerly from now on, as long as backend and model stay, and say so."""
        self.clear()
        self._failure = f"a capture failed: {error}"
        warnings.warn(f"no CUDA graphs: {self._failure}", stacklevel=6)
        self.eager[self._failure] += 1

    def run_padded(self, plan: StepPlan, backend: Backend) -> tuple[Tensor, ForwardContext]:
        """Return what `run` does, computed without a graph on the same padded inputs."""
        filled = self._fill(plan, backend)
        ctx, tokens = self._context(filled, backend), plan.num_tokens
        with holding(self.model, self.points) as held:
            hidden = self.model(filled.buffers.views["token_ids"], ctx)
            self.states = {point: rows()[:tokens] for point, rows in held.items()}
        return hidden[:tokens], ctx

    def _fill(self, plan: StepPlan, backend: Backend) -> Filled:
        """Return a plan's inputs, padded and on their way; lengths of decodes alone decide how they
        are computed, as those of drafts are read on the device."""
        size = self.sizes[bisect_left(self.sizes, len(plan.sequences))]
        group = self.cache.blocks.groups[0]
        tables = [group.tables[sequence.sequence_id] for sequence in plan.sequences]
        blocks = max(len(table.block_ids) for table in tables)
        width = max(_MIN_WIDTH, 1 << (blocks - 1).bit_length())
        tokens, words, buffers = size, num_words(plan), None
        if plan.drafts:
            tokens = TOKENS[bisect_left(TOKENS, max(plan.num_tokens, size))]
        key = size, width, tokens, words if plan.drafts else -1
        buffers = self._buffers.get(key)
        if buffers is None:
            buffers = self._buffers[key] = self._make(*key)
        lens = buffers.fill(plan, self.cache)
        buffers.upload(plan)
        into = self._loras, plan, backend, buffers.tokens
        lora = self.adapters.refill(*into) if self.adapters else None
        return Filled(buffers, lora, [1] if plan.drafts else lens)

    def _drop_stale(self, generation: Hashable) -> None:
        """Drop the graphs whose adapters lie elsewhere now."""
        stale = [key for key in self._graphs if key[0] and key[0][0] != generation]
        torch.cuda.synchronize(self.device)
        for key in stale:
            self._graphs.pop(key).graph.reset()

    def _make(self, rows: int, width: int, tokens: int, words: int) -> DecodeBuffers:
        rope_lens = self.model.needs_rope_lens
        if words < 0:
            return DecodeBuffers(rows, width, self.device, rope_lens=rope_lens)
        sizes = {"rows": rows, "words": words}
        return PackedBuffers(tokens, width, self.device, **sizes, rope_lens=rope_lens)

    def _context(self, filled: Filled, backend: Backend) -> ForwardContext:
        buffers, lora, lens = filled
        batch = None if lora is None else lora.batch
        if isinstance(buffers, PackedBuffers):
            return replace(buffers.context(backend, self.cache.layers), lora=batch)
        views = buffers.views
        ctx = ForwardContext(
            backend=backend,
            positions=views["positions"],
            query_lens=[1] * buffers.rows,
            kv_lens=lens,
            num_decodes=buffers.rows,
            context_lens=views["context_lens"],
            slot_mapping=views["slot_mapping"],
            block_tables=views["block_tables"],
            kv=self.cache.layers,
            kv_scales=self.cache.layer_scales,
            rope_lens=views.get("rope_lens"),
            lora=batch,
        )
        ctx.prepared = backend.prepare(ctx)
        return ctx

    def _capture(self, filled: Filled, backend: Backend) -> DecodeGraph:
        """Run the pass once, so that all is compiled and allocated, then capture it."""
        begin = time.perf_counter()
        ctx, token_ids = self._context(filled, backend), filled.buffers.views["token_ids"]
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph, (stream, lock) = torch.cuda.CUDAGraph(), _capture_stream(self.device)
            points = holding(self.model, self.points)
            with points as held, lock, torch.cuda.stream(stream):
                stream.wait_stream(current)
                self.model(token_ids, ctx)
                stream.synchronize()
                # Another engine's thread may go on allocating meanwhile.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    hidden = self.model(token_ids, ctx)
                except BaseException:
                    with suppress(RuntimeError):  # the capture's failure is the one to tell
                        graph.capture_end()
                    raise
                graph.capture_end()
            current.wait_stream(stream)
        self.captures += 1
        self.capture_seconds += time.perf_counter() - begin
        return DecodeGraph(graph, hidden, ctx, held)

    def forget_inputs(self) -> None:
        """Fill the next inputs as if none had been before."""
        for buffers in self._buffers.values():
            buffers.forget()

    def clear(self) -> None:
        """Drop every graph with its memory, and forget failures: capture anew when wanted."""
        if self._graphs:
            torch.cuda.synchronize(self.device)
        for captured in self._graphs.values():
            captured.graph.reset()
        self._graphs.clear()
        self._buffers.clear()
        self._loras.clear()
        self.latest, self._pool, self._failure, self.states = None, None, "", {}
        self._decodes.forget()
        self._watch.renew()

    def close(self) -> None:
        """Drop the graphs, the model and the cache."""
        self.clear()
        del self.model, self.cache, self._watch, self._decodes, self._backend

    @property
    def summary(self) -> str:
        """What was captured and replayed so far, in a line."""
        eager = sum(self.eager.values())
        cost = f"{self.captures} captured in {self.capture_seconds:.2f} s"
        return f"{cost}, {self.replays} replays, {eager} passes eagerly"

    def describe(self) -> dict[str, Any]:
        """Return what was captured and replayed, and why passes were not."""
        return {
            "sizes": self.sizes,
            "so far": self.summary,
            "held": len(self._graphs),
            "eager because": dict(self.eager),
        }


def _words(buffers: DecodeBuffers) -> int:
    """Return how wide masks are; -1 for decodes alone, which other kernels compute."""
    return buffers.words if isinstance(buffers, PackedBuffers) else -1


@cache
def _capture_stream(device: torch.device) -> tuple[torch.cuda.Stream, threading.Lock]:
    """Return the stream of all captures on a device, and a lock, as engines may have threads.

    One for all, because cuBLAS keeps a workspace for each stream that it has seen.
    """
    return torch.cuda.Stream(device), threading.Lock()  # type: ignore[no-untyped-call]
