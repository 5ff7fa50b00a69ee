"""CUDA graphs for decode batches and small mixed ones: one launch in place of some hundred.

A batch in which every row decodes is padded to the next size of a ladder and replayed from a graph
of that size, captured the first time it is wanted; all graphs share one memory pool. With drafts to
verify, rows and tokens are padded, each to a ladder of their own. So are short prompts beside
decodes, or alone; a graph for these is captured only when its size has come before. Everything else
runs eagerly, and `why_eager` says why. `run_padded` is the same pass without a graph: the oracle.
Called by the runner; the graph ends with the hidden states, logits are made outside it.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.batch import Backend, ForwardContext, StepPlan
from workbench.cache import KVCache
from workbench.describe import Described
from workbench.layers.probe import holding
from workbench.lora import AdapterBatches, ReplayedAdapters
from workbench.models import DecoderLM
from workbench.ops import TritonBackend
from workbench.ops.kernel_set import KernelSet
from workbench.run.capture import captured
from workbench.run.decode_buffers import DecodeBuffers
from workbench.run.decodes import PlainDecodes
from workbench.run.graph_sizes import LADDER, TOKENS, Comings, Size, num_prompts, padded_size
from workbench.run.mixed_buffers import MixedBuffers
from workbench.run.packed_buffers import PackedBuffers
from workbench.run.watch import ModelWatch


@dataclass(slots=True)
class DecodeGraph:
    """A captured pass. hidden [size, hidden] is where its replays leave their result; held: reads
    what they leave at points of the model; kernels: the names of those that the pass asked for."""

    graph: torch.cuda.CUDAGraph
    hidden: Tensor
    ctx: ForwardContext
    held: dict[str, Callable[[], Tensor]]
    buffers: DecodeBuffers
    kernels: set[str]


class Filled(NamedTuple):
    """A plan in static buffers, its adapters, and lengths that decide how it is computed: of its
    decodes, and of its other rows."""

    buffers: DecodeBuffers
    lora: ReplayedAdapters | None
    lens: list[int]
    chunk_lens: list[int]


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
        self._buffers: dict[Size, DecodeBuffers] = {}
        self._comings = Comings()
        self._backend: Backend | None = None
        self._failure = ""  # why a capture with this backend failed
        self._pool: Any = None
        self._decodes = PlainDecodes(cache, self._watch)

    def why_eager(self, plan: StepPlan, backend: Backend) -> str:
        """Return why a plan cannot be replayed; empty if it can."""
        self._comings.begin_pass()
        if not backend.capturable:
            return f"the {backend.name} backend cannot be captured"
        if self._failure and backend is self._backend:
            return self._failure
        if plan.drafts and plan.num_tokens > TOKENS[-1]:
            return f"more than {TOKENS[-1]} tokens"
        why = self._decodes.why_not(plan, max_rows=self.sizes[-1], mixed=not self.points)
        if not why and num_prompts(plan):
            size = padded_size(plan, self.cache, self.sizes)
            if size not in self._buffers and not self._comings.often(size):
                return "prompts of a size that is seldom"
        return why

    def run(self, plan: StepPlan, backend: Backend) -> tuple[Tensor, ForwardContext]:
        """Replay a plan for which `why_eager` is empty; return the hidden states of its tokens that
        give logits [R, hidden].

        They are overwritten by the next replay. The graph is captured first where there is none.
        """
        if backend is not self._backend:
            self.clear()
            self._backend = backend
        replayed = self._replay(plan, backend)
        # Asked while the GPU is busy: what is to be done again writes the same slots.
        if replayed is not None and self._watch.changed:
            self.clear()
            replayed = self._replay(plan, backend)
        if replayed is None:
            return self.run_padded(plan, backend)
        self.replays += 1
        self.latest = replayed
        tokens = plan.num_tokens
        if self.points:  # copied: the next replay writes over them
            self.states = {point: rows()[:tokens] for point, rows in replayed.held.items()}
        return _asked(plan, replayed.hidden, replayed.buffers, replayed.ctx)

    def _replay(self, plan: StepPlan, backend: Backend) -> DecodeGraph | None:
        """Start a plan's pass and return its graph; None if it cannot be captured."""
        filled = self._fill(plan, backend)
        buffers, lora, lens, chunk_lens = filled
        place = None if lora is None else lora.launches
        own = lens, self.cache.layers[0], chunk_lens, buffers.chunk_tokens
        key = place, buffers, self.points, backend.graph_key(*own)
        held = self._graphs.get(key)
        if held is None:
            if place is not None:
                self._drop(lambda key, _: key[0] and key[0][0] != place[0])  # they lie elsewhere
            try:
                held = self._graphs[key] = self._capture(filled, backend)
            except RuntimeError as error:
                if self.insist:
                    raise
                self._give_up(error)
                return None
        held.graph.replay()
        return held

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
        return _asked(plan, hidden, filled.buffers, ctx)

    def _fill(self, plan: StepPlan, backend: Backend) -> Filled:
        """Return a plan's inputs, padded and on their way."""
        size = padded_size(plan, self.cache, self.sizes)
        buffers = self._buffers.get(size)
        if buffers is None:
            buffers = self._buffers[size] = self._make(size)
        lens = buffers.fill(plan, self.cache)
        buffers.upload(plan)
        into = self._loras, plan, backend, buffers.tokens, buffers.decodes
        lora = self.adapters.refill(*into) if self.adapters else None
        return Filled(buffers, lora, *buffers.by_kind(lens))

    def drop_kernel(self, name: str) -> None:
        """Drop the graphs that hold a kernel: another one has its place."""
        self._drop(lambda _, held: name in held.kernels)

    def _drop(self, stale: Callable[[Any, DecodeGraph], Any]) -> None:
        keys = [key for key, held in self._graphs.items() if stale(key, held)]
        torch.cuda.synchronize(self.device)
        for key in keys:
            self._graphs.pop(key).graph.reset()
        if not self._graphs:
            self._pool = None  # nothing may be captured into a pool that its last graph has left

    def _make(self, size: Size) -> DecodeBuffers:
        rope_lens = self.model.needs_rope_lens
        if size.chunk_rows:
            room = {"rows": size.chunk_rows, "tokens": size.chunk_tokens}
            return MixedBuffers(size.rows, size.width, self.device, **room, rope_lens=rope_lens)
        if size.words < 0:
            return DecodeBuffers(size.rows, size.width, self.device, rope_lens=rope_lens)
        sizes = {"rows": size.rows, "words": size.words}
        return PackedBuffers(size.tokens, size.width, self.device, **sizes, rope_lens=rope_lens)

    def _context(self, filled: Filled, backend: Backend) -> ForwardContext:
        buffers, lora, lens, chunk_lens = filled
        batch = None if lora is None else lora.batch
        if isinstance(buffers, PackedBuffers):
            ctx = buffers.context(backend, self.cache.layers, chunk_lens)
            return replace(ctx, kv_scales=self.cache.layer_scales, lora=batch)
        if isinstance(buffers, MixedBuffers):
            ctx = buffers.context(backend, self.cache.layers, lens, chunk_lens)
            return replace(ctx, kv_scales=self.cache.layer_scales, lora=batch)
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
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        kernels = backend.kernels if isinstance(backend, TritonBackend) else KernelSet({})
        with holding(self.model, self.points) as held, kernels.noting() as names:
            run = partial(self.model, token_ids, ctx)
            graph, hidden = captured(run, self.device, self._pool)
        self.captures += 1
        self.capture_seconds += time.perf_counter() - begin
        return DecodeGraph(graph, hidden, ctx, held, filled.buffers, names)

    def forget_inputs(self) -> None:
        """Fill the next inputs as if none had been before."""
        for buffers in self._buffers.values():
            buffers.forget()

    def clear(self) -> None:
        """Drop every graph with its memory, and forget failures: capture anew when wanted."""
        if self._graphs:
            torch.cuda.synchronize(self.device)
        for held in self._graphs.values():
            held.graph.reset()
        self._graphs.clear()
        self._buffers.clear()
        self._loras.clear()
        self._comings.clear()
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


def _asked(
    plan: StepPlan, hidden: Tensor, buffers: DecodeBuffers, ctx: ForwardContext
) -> tuple[Tensor, ForwardContext]:
    """Return the rows of a pass that give logits, and the context of these."""
    if isinstance(buffers, MixedBuffers):
        places = buffers.views["logit_rows"][: len(plan.sampled)]
        return hidden[places], ctx if ctx.lora is None else ctx.at(buffers.asked(plan))
    return hidden[: plan.num_tokens], ctx
