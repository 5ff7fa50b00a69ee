"""`Runner`: one forward pass over a plan's packed batch, eagerly, from a CUDA graph or a tape.

Takes a `StepPlan`, returns the logits of the rows that sample, and what else requests want to know
of their tokens. It has the cache make the transfers that the plan rests on first, and writes KV
only through the attention op; sequences and blocks it just reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from workbench.batch import Backend, StepPlan
from workbench.cache import KVCache, KVGroup, groups_of
from workbench.describe import Described
from workbench.errors import ConfigError
from workbench.layers import probe
from workbench.lora import AdapterBatches
from workbench.models import DecoderLM
from workbench.ops import NativeBackend, TritonBackend, get_backend
from workbench.ops.watched import WatchedBackend
from workbench.results import ForwardOutput, RowReport
from workbench.run.block_masses import BlockMasses
from workbench.run.device_timer import DeviceTimer
from workbench.run.graph_sizes import resolve_sizes
from workbench.run.graphs import DecodeGraphs
from workbench.run.inputs import InputBuilder
from workbench.run.reports import make_reports, points_of
from workbench.run.tapes import DecodeTapes, resolve_tape
from workbench.run.watch import hooks_of

if TYPE_CHECKING:
    from workbench.kernels.spec import KernelSpec


class Runner(Described):
    """Runs a model over a cache; `backend` may be replaced between steps.

    cuda_graphs: `"auto"` replays batches of decodes from graphs on a GPU, with a backend that can
    be captured; True insists on that, False never does; batch sizes say which to capture (and
    insist). tape: the same on a CPU, with a backend that can be recorded. batch_invariant: whether
    a token's results must have the same bits whatever else is in its batch, at some cost. `graphs`
    and `tapes` are None where there are none. `captured`: points of the model (see
    `workbench.layers.probe`) whose rows each pass gives out in `ForwardOutput.states`. The engine's
    manager of LoRA adapters sets `adapters`.
    """

    def __init__(
        self,
        model: DecoderLM,
        cache: KVCache,
        backend: str | Backend = "auto",
        cuda_graphs: str | bool | Sequence[int] = "auto",
        tape: str | bool = "auto",
        batch_invariant: bool = False,
    ) -> None:
        """Raise `ConfigError` if model and cache do not fit together, the backend is unknown, or
        CUDA graphs or a tape are wanted where they cannot be had."""
        self.model, self.cache = model, cache
        self.captured: tuple[str, ...] = ()
        self._adapters: AdapterBatches | None = None
        self.device = next(model.parameters()).device
        self._check_fit()
        self.batch_invariant = batch_invariant
        self.backend = self.backend_named(backend)
        self._check_invariance(self.backend)
        cuda_graphs, tape = _replays(model, cuda_graphs, tape)
        sizes = resolve_sizes(cuda_graphs, self.device, self.backend)
        insist = cuda_graphs != "auto"
        taped = resolve_tape(tape, self.device, self.backend)
        if sizes is not None and insist and len(cache.groups) > 1:
            problem = "passes over several KV groups are not replayed from graphs"
            raise ConfigError("cuda_graphs", cuda_graphs, problem, "Use 'auto' or False.")
        self.inputs = InputBuilder(cache, self.device, rope_lens=model.needs_rope_lens)
        self.graphs = None if sizes is None else DecodeGraphs(model, cache, sizes, insist=insist)
        self.tapes = DecodeTapes(model, cache, insist=tape is True) if taped else None
        self._hooks = hooks_of(model)

    def backend_named(self, wanted: str | Backend) -> Backend:
        """Return the backend of a name as this runner needs it, or the one given (`get_backend`).

        Raises `ConfigError` also for a model or a cache that it cannot run.
        """
        if callable(getattr(wanted, "attention", None)):
            backend = cast("Backend", wanted)
        else:
            name = cast("str", wanted)
            backend = get_backend(name, self.device, batch_invariant=self.batch_invariant)
        backend.check_model(self.model.config, self.cache.block_size)
        return backend

    def kernel_named(self, kernel: str | KernelSpec, backend: Backend) -> KernelSpec:
        """Return the kernel to put into a backend: a spec, or the shipped one of a name.

        Raises `ConfigError` for an unknown one, and where the backend runs none of our kernels.
        """
        if not isinstance(backend, TritonBackend):
            fix = 'engine.swap(backend="triton") first; on a CPU start with TRITON_INTERPRET=1.'
            raise ConfigError("backend", backend.name, "does not run Triton kernels", fix)
        return backend.kernels.named(kernel)

    def replace_kernel(self, spec: KernelSpec) -> None:
        """Put one of `kernel_named` into the backend; graphs that hold the old one go."""
        assert isinstance(self.backend, TritonBackend), "`kernel_named` was asked"
        self.backend.kernels.replace(spec)
        if self.graphs is not None:
            self.graphs.drop_kernel(spec.name)

    def _check_invariance(self, backend: Backend) -> None:
        if not self.batch_invariant:
            return
        dtype = next(self.model.parameters()).dtype
        problem = ""
        if not backend.batch_invariant:
            problem = f"the results of this {backend.name} backend depend on the batch"
        elif backend.name == "native" and dtype not in NativeBackend.dtypes:
            problem = f"the native backend leaves {dtype} to torch, whose results depend on it"
        if problem:
            fix = 'Use backend="reference" or "triton", or dtype="float32" or "bfloat16".'
            raise ConfigError("batch_invariant", True, problem, fix)

    def _check_fit(self) -> None:
        wanted, given = groups_of(self.model.config), self.cache.groups
        kv = self.cache.tensors[0]
        if wanted != given:
            shape = "(layers, window, kv_heads, head_dim)"
            raise ConfigError(
                "cache",
                f"{shape}={', '.join(map(_shape, given))}",
                f"the model needs {', '.join(map(_shape, wanted))}",
                "Make it with `KVCache.for_model(model)`.",
            )
        if kv.device != self.device:
            raise ConfigError(
                "cache", str(kv.device), f"the model is on {self.device}", "Put both on one device."
            )

    @property
    def adapters(self) -> AdapterBatches | None:
        """What makes a plan's LoRA adapters; None where there are none."""
        return self._adapters

    @adapters.setter
    def adapters(self, adapters: AdapterBatches | None) -> None:
        self._adapters = adapters
        if self.graphs is not None:
            self.graphs.adapters = adapters
        if self.tapes is not None:
            self.tapes.adapters = adapters

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> ForwardOutput:
        """Return the logits of `plan.sampled`, and a report for each row that asks for one."""
        timed = self.cache.blocks.bus and self.device.type == "cuda"
        timer = DeviceTimer(self.device) if timed else None
        self.cache.run_transfers(plan.copies)
        output = self._run(plan)
        if timer is not None:
            timer.stop()
            output.timer = timer
        return output

    def _run(self, plan: StepPlan) -> ForwardOutput:
        replays = self.graphs or self.tapes
        if replays is not None:
            replays.points = self.captured
            why = replays.why_eager(plan, self.backend)
            if not why and self._adapters is not None:
                why = self._adapters.why_eager(plan)
            if not why:
                hidden, ctx = replays.run(plan, self.backend)
                if not plan.sampled:
                    return ForwardOutput()
                states = replays.states if self.captured else {}
                return ForwardOutput(self.model.logits(hidden, ctx), states=states)
            replays.eager[why] += 1
        return self._run_eagerly(plan)

    def _run_eagerly(self, plan: StepPlan) -> ForwardOutput:
        masses, backend = BlockMasses(plan.weighed), self.backend
        if plan.weighed:
            backend = WatchedBackend(backend, masses)
        lora = None if self._adapters is None else self._adapters.build(plan, backend)
        inputs = self.inputs.build(plan, backend, lora)
        with probe(self.model, {*points_of(plan), *self.captured}) as seen:
            hidden = self.model(inputs.token_ids, inputs.ctx)
        reports = make_reports(plan, self.model, hidden, inputs.ctx, seen)
        states = {point: seen[point] for point in self.captured}
        if plan.weighed:
            for row, sums in masses.by_row().items():
                reports.setdefault(row, RowReport()).block_masses = sums
        if not plan.sampled:
            return ForwardOutput(None, reports, states)
        if len(inputs.logit_rows) < hidden.shape[0]:
            hidden = hidden[inputs.logit_rows]
        return ForwardOutput(self.model.logits(hidden, inputs.logit_ctx), reports, states)

    @property
    def draw(self) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
        """The backend's own way to draw tokens on a GPU; None where it has none."""
        if isinstance(self.backend, TritonBackend) and self.device.type == "cuda":
            return self.backend.sample
        return None

    def why_plain(self) -> str:
        """Return why a pass may not be run before the step that it belongs to; empty if it may."""
        if len(self.cache.groups) > 1:
            return "the cache has several KV groups"
        if any(self._hooks):
            return "a hook (a probe) looks into the model"
        return ""

    def forget_inputs(self) -> None:
        """Take nothing over from the inputs of the latest pass: its step was never taken."""
        for replays in (self.graphs, self.tapes):
            if replays is not None:
                replays.forget_inputs()

    def forget_addresses(self) -> None:
        """Drop graphs and tapes, to be made anew: the cache or the adapters lie elsewhere now."""
        for replays in (self.graphs, self.tapes):
            if replays is not None:
                replays.clear()

    @property
    def preparations(self) -> int:
        """How many graphs were captured, tapes recorded and kernels compiled: steps that did took
        longer for it."""
        replays = (self.graphs, self.tapes)
        captures = sum(each.captures for each in replays if each is not None)
        if isinstance(self.backend, TritonBackend):
            return captures + len(self.backend.compilations)
        return captures

    def close(self) -> None:
        """Drop the graphs, the tape, the model and the cache."""
        for replays in (self.graphs, self.tapes):
            if replays is not None:
                replays.close()
        del self.graphs, self.tapes, self.model, self.cache, self.inputs, self.backend
        self._adapters = None

    def describe(self) -> dict[str, Any]:
        """Return what runs where."""
        why, mode = self.backend.chosen_because, "eager"
        if self.graphs is not None:
            mode = f"CUDA graphs: {self.graphs.summary}"
        elif self.tapes is not None and isinstance(self.backend, NativeBackend):
            mode = f"tape: {self.tapes.summary}"
        return {
            "model": self.model.config.architecture,
            "backend": f"{self.backend.name} ({why})" if why else self.backend.name,
            "device": self.device,
            "mode": mode,
        }


def _shape(group: KVGroup) -> str:
    facts = len(group.layers), group.window, group.num_kv_heads, group.head_dim
    return f"({', '.join(map(str, facts))})"


def _replays(
    model: DecoderLM, cuda_graphs: str | bool | Sequence[int], tape: str | bool
) -> tuple[str | bool | Sequence[int], str | bool]:
    """Return the choices for a model, none where its passes are not the same calls each time."""
    if model.replayable:
        return cuda_graphs, tape
    for name, choice in (("cuda_graphs", cuda_graphs), ("tape", tape)):
        if choice not in ("auto", False):
            problem = f"a {type(model).__name__} routes tokens by what they are: no pass is another"
            raise ConfigError(name, choice, problem, "Use 'auto' or False.")
    return False, False
