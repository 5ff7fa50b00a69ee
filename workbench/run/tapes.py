"""Decodes on a CPU from a tape: one C call in place of a pass through Python, as CUDA graphs do.

A batch in which every row decodes, with a draft to verify or without, is replayed from the native
backend's calls, recorded the first time it is wanted and again when tokens or block tables outgrow
it. Everything else runs eagerly, and `why_eager` says why. `run_plain` is the same pass without a
tape: the oracle, to which the first replay of every tape is compared bit for bit before the tape is
used. Called by the runner; a tape ends with the hidden states, logits are made outside it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.batch import Backend, ForwardContext, StepPlan, TreeMasks
from workbench.cache import KVCache
from workbench.describe import Described, human_bytes
from workbench.errors import ConfigError
from workbench.layers.probe import holding
from workbench.lora import AdapterBatches, ReplayedAdapters
from workbench.lora_batch import LoRABatch
from workbench.models import DecoderLM
from workbench.ops import NativeBackend
from workbench.ops.native import NO_TREES, trees_of
from workbench.ops.tape import NotRecordable, Tape
from workbench.run.decodes import PlainDecodes
from workbench.run.packed_buffers import PackedBuffers
from workbench.run.trees import tree_masks
from workbench.run.watch import ModelWatch

_MIN_TOKENS = 8
_MAX_TOKENS = 512  # of a pass: in larger ones Python's share is small
_MIN_WIDTH = 64  # blocks of a table


@dataclass(slots=True)
class DecodeTape:
    """A recorded pass. hidden [tokens, hidden] is where its replays leave their result; held: reads
    what they leave at points of the model; lora: None where no LoRA adapter takes part."""

    tape: Tape
    buffers: PackedBuffers
    hidden: Tensor
    ctx: ForwardContext
    held: dict[str, Callable[[], Tensor]]
    lora: ReplayedAdapters | None

    def fits(self, tokens: int, width: int, points: tuple[str, ...]) -> bool:
        """Whether it replays passes of so many tokens and blocks, and these points are held."""
        buffers = self.buffers
        return tokens <= buffers.rows and width <= buffers.width and set(points) <= set(self.held)

    def takes_adapters(self, plan: StepPlan) -> bool:
        """Write a plan's adapters, if it has any; False if they lie elsewhere now."""
        return self.lora is None or self.lora.fill(plan)


class DecodeTapes(Described):
    """The tape of one model over one cache, and what is recorded anew when it does not fit.

    insist: whether a pass that cannot be recorded raises `NotRecordable`; else decodes run eagerly
    as long as backend and model stay. points: of the model, whose rows in the latest pass are in
    `states`. `captures`, `capture_seconds` and `replays` count; `eager` counts the passes that were
    not replayed, by reason.
    """

    def __init__(self, model: DecoderLM, cache: KVCache, *, insist: bool = False) -> None:
        self.model, self.cache, self.insist = model, cache, insist
        self.device = cache.tensors[0].device
        self.captures, self.capture_seconds, self.replays = 0, 0.0, 0
        self.eager: Counter[str] = Counter()
        self.latest: DecodeTape | None = None
        self.adapters: AdapterBatches | None = None  # makes those of a plan, if there may be any
        self._held: dict[bool, DecodeTape] = {}  # without adapters, and with
        self.points: tuple[str, ...] = ()
        self.states: dict[str, Tensor] = {}
        self._watch = ModelWatch(model)
        self._decodes = PlainDecodes(cache, self._watch)
        self._backend: Backend | None = None
        self._failure = ""  # why the latest recording, with this backend and model, failed

    def why_eager(self, plan: StepPlan, backend: Backend) -> str:
        """Return why a plan cannot be replayed; empty if it can."""
        if not isinstance(backend, NativeBackend):
            return f"the {backend.name} backend cannot be recorded"
        if self._failure and backend is self._backend and not self._watch.changed:
            return self._failure
        if plan.num_tokens > _MAX_TOKENS:
            return f"more than {_MAX_TOKENS} tokens"
        return self._decodes.why_not(plan)

    def run(self, plan: StepPlan, backend: Backend) -> tuple[Tensor, ForwardContext]:
        """Replay a plan for which `why_eager` is empty; return hidden states [tokens, hidden].

        They are overwritten by the next replay. Where there is no tape that fits, the pass is run
        eagerly and recorded.
        """
        if backend is not self._backend or self._watch.changed:
            self.clear()
            self._backend = backend
        tokens, width = plan.num_tokens, self._width(plan)
        taped = self._held.get(_adapted(plan))
        if taped is None or not taped.fits(tokens, width, self.points):
            return self._capture(plan, backend, tokens, width)
        if not taped.takes_adapters(plan):
            return self._capture(plan, backend, tokens, width)
        self.latest = taped
        taped.buffers.fill(plan, self.cache)
        taped.buffers.upload(plan)
        self._replay(taped, plan, tokens)
        self.replays += 1
        return taped.hidden[:tokens], taped.ctx

    def _replay(self, taped: DecodeTape, plan: StepPlan, tokens: int) -> None:
        masks = tree_masks(plan, self.device) if plan.drafts else None
        trees = NO_TREES if masks is None else trees_of(masks, plan.num_new)
        taped.tape.replay(tokens, len(plan.sequences), trees)
        if self.points:
            self.states = {point: taped.held[point]()[:tokens] for point in self.points}

    def _width(self, plan: StepPlan) -> int:
        tables = self.cache.blocks.groups[0].tables
        return max(len(tables[sequence.sequence_id].block_ids) for sequence in plan.sequences)

    def run_plain(
        self,
        plan: StepPlan,
        backend: Backend,
        buffers: PackedBuffers,
        lora: LoRABatch | None = None,
    ) -> tuple[Tensor, ForwardContext]:
        """Return what `run` does, computed without a tape on the same inputs."""
        lens = buffers.fill(plan, self.cache)
        buffers.upload(plan)
        masks = tree_masks(plan, self.device) if plan.drafts else None
        ctx = self._context(buffers, plan.num_new, lens, backend, masks)
        ctx.lora = lora
        token_ids = buffers.views["token_ids"][: plan.num_tokens]
        with holding(self.model, self.points) as held:
            hidden = self.model(token_ids, ctx)
            self.states = {point: rows() for point, rows in held.items()}
        return hidden, ctx

    def _context(
        self,
        buffers: PackedBuffers,
        query_lens: list[int],
        kv_lens: list[int],
        backend: Backend,
        trees: TreeMasks | None = None,
    ) -> ForwardContext:
        views, rows, tokens = buffers.views, len(query_lens), sum(query_lens)
        rope_lens = views.get("rope_lens")
        ctx = ForwardContext(
            backend=backend,
            positions=views["positions"][:tokens],
            query_lens=query_lens,
            kv_lens=kv_lens,
            num_decodes=query_lens.count(1),
            query_starts=views["query_starts"][: rows + 1],
            context_lens=views["context_lens"][:rows],
            slot_mapping=views["slot_mapping"][:tokens],
            block_tables=views["block_tables"][:rows],
            kv=self.cache.layers,
            kv_scales=self.cache.layer_scales,
            rope_lens=None if rope_lens is None else rope_lens[:tokens],
            trees=trees,
        )
        ctx.prepared = backend.prepare(ctx)
        return ctx

    def _capture(
        self, plan: StepPlan, backend: Backend, tokens: int, width: int
    ) -> tuple[Tensor, ForwardContext]:
        """Run a plan's pass, record it with room to grow, and return what the pass returned."""
        begin = time.perf_counter()
        sizes = _power_of_2(max(tokens, _MIN_TOKENS)), _power_of_2(max(width, _MIN_WIDTH))
        self._held.pop(_adapted(plan), None)
        self.latest = None
        buffers = PackedBuffers(*sizes, self.device, rope_lens=self.model.needs_rope_lens)
        lora = None
        if self.adapters is not None and _adapted(plan):
            lora = self.adapters.fixed(plan, backend, sizes[0])
        batch = None if lora is None else lora.batch
        hidden, ctx = self.run_plain(plan, backend, buffers, batch)
        try:
            taped = self._record(buffers, backend, lora)
            self._replay(taped, plan, tokens)
            if not _same_bits(taped.hidden[:tokens], hidden):
                raise NotRecordable("a replay does not give what the pass itself does")
        except NotRecordable as error:
            if self.insist:
                raise
            self._failure = f"decodes cannot be recorded: {error}"
            self.eager[self._failure] += 1
            # A wrong replay has left wrong keys.
            return self.run_plain(plan, backend, buffers, batch)
        self.latest = self._held[_adapted(plan)] = taped
        self.captures += 1
        self.capture_seconds += time.perf_counter() - begin
        return hidden, ctx

    def _record(
        self, buffers: PackedBuffers, backend: Backend, lora: ReplayedAdapters | None
    ) -> DecodeTape:
        assert isinstance(backend, NativeBackend), "`why_eager` was asked"
        tape, ones = Tape(buffers.rows), [1] * buffers.rows
        ctx = self._context(buffers, ones, ones, tape.recorder(backend))
        ctx.lora = None if lora is None else lora.batch
        with holding(self.model, self.points) as held, tape.recording():
            hidden = self.model(buffers.views["token_ids"], ctx)
        ctx.backend = backend
        return DecodeTape(tape, buffers, hidden, ctx, held, lora)

    def forget_inputs(self) -> None:
        """Fill the next inputs as if none had been before."""
        for taped in self._held.values():
            taped.buffers.forget()

    def clear(self) -> None:
        """Drop the tape with its memory, and forget failures: record anew when wanted."""
        self.latest, self._failure, self.states = None, "", {}
        self._held.clear()
        self._decodes.forget()
        self._watch.renew()

    def close(self) -> None:
        """Drop the tape, the model and the cache."""
        self.clear()
        del self.model, self.cache, self._watch, self._decodes, self._backend

    @property
    def summary(self) -> str:
        """What was recorded and replayed so far, in a line."""
        cost = f"{self.captures} recorded in {self.capture_seconds:.3f} s"
        return f"{cost}, {self.replays} replays, {sum(self.eager.values())} passes eagerly"

    def describe(self) -> dict[str, Any]:
        """Return what was recorded and replayed, and why passes were not."""
        facts: dict[str, Any] = {"so far": self.summary}
        if self.latest is not None:
            tape, buffers = self.latest.tape, self.latest.buffers
            facts["held"] = f"{tape.num_calls} calls, {human_bytes(tape.num_bytes)}"
            facts["fits"] = f"{buffers.rows} tokens, tables of {buffers.width} blocks"
        return {**facts, "eager because": dict(self.eager)}


def _adapted(plan: StepPlan) -> bool:
    """Whether any of a plan's sequences goes through a LoRA adapter."""
    return any(sequence.request.lora for sequence in plan.sequences)


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype are equal to the last bit, NaN included."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def resolve_tape(tape: object, device: torch.device, backend: Backend) -> bool:
    """Return whether decodes are to be replayed from a tape.

    tape: `"auto"` (where they can be), True or False. Raises `ConfigError` for anything else, and
    for True where they cannot be.
    """
    if not isinstance(tape, bool) and tape != "auto":
        raise ConfigError("tape", tape, "no such choice", 'Use "auto", True or False.')
    if tape is True and not isinstance(backend, NativeBackend):
        problem = f"the {backend.name} backend cannot be recorded"
        raise ConfigError("tape", tape, problem, 'Use backend="native", or leave it at "auto".')
    return bool(tape) and device.type == "cpu"
