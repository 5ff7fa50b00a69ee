"""The backend on our own Triton kernels: CUDA natively, a CPU only through Triton's interpreter.

A step's rows are split once, in `prepare`: decode rows go to `paged_decode`, the others to
`prefill_attention`. Everything that decides a grid is taken from lengths that the host knows, so no
call waits for the GPU. It has no gradients: training uses `reference` or `sdpa`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.errors import KernelFailed
from workbench.lora_batch import LoRABatch, LoRAGain, LoRAWeights
from workbench.ops.kernel_set import KernelSet, shapes_of
from workbench.ops.library_prefill import attend_whole_prompts, why_not
from workbench.ops.limits import check_model
from workbench.ops.reference import ReferenceBackend
from workbench.ops.requirements import lacks_fp8, refuse_fp8, require_triton
from workbench.ops.triton_lora import LoRAKernels, gain_lora
from workbench.ops.triton_rows import Prepared, Rows, split_rows
from workbench.ops.triton_splits import Splits

if TYPE_CHECKING:
    from workbench.kernels.launch import Config
    from workbench.kernels.spec import Inputs, KernelSpec

Prefill = Literal["kernel", "library", "measured"]


class TritonBackend(ReferenceBackend):
    """`Backend` on `workbench.kernels`, with the tuned configurations of the GPU it runs on.

    `kernels` holds the specs by name; `Engine.swap(kernel=…)` puts your own `KernelSpec` in.
    `prefill` says who attends from prompts that are whole in a step: our "kernel", torch's
    "library", or which of them was "measured" to be faster. `lora` launches adapters' kernels.
    `compilations` are those of Triton since it was made.
    """

    name = "triton"
    prefill: Prefill = "kernel"
    _cuts = Splits

    def __init__(self, device: torch.device) -> None:
        """Raise `ConfigError` where the kernels cannot run, saying what would work."""
        super().__init__(device)
        require_triton(device)
        from workbench.kernels.compilations import COMPILATIONS
        from workbench.kernels.launch import sm_count
        from workbench.kernels.registry import SPECS
        from workbench.kernels.tuning import TunedTable

        self.compilations = COMPILATIONS.watch()
        self.kernels = KernelSet(SPECS)
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.tuned = TunedTable.load(named)
        self._splits = self._cuts(sm_count(device))
        self.lora = LoRAKernels(self._run)
        self._lacks_fp8 = lacks_fp8(device)
        self.capturable = device.type == "cuda"

    def describe(self) -> dict[str, Any]:
        """Return where it runs and which tuned configurations it has used."""
        own = {"prefill": self.prefill, "compiled": self.compilations.summary}
        return {**super().describe(), **own, "tuned": self.tuned.describe()}

    def _run(self, kernel: str, dtype: torch.dtype, **inputs: Any) -> Any:
        spec = self.kernels[kernel]
        return self._launch(spec, inputs, self._config(spec, dtype, inputs))

    def _config(self, spec: KernelSpec, dtype: torch.dtype, inputs: Inputs) -> Config | None:
        """Return what a kernel is launched with; None: its default."""
        return self.tuned.config(spec, dtype, inputs)

    def _launch(self, spec: KernelSpec, inputs: Inputs, config: Config | None) -> Any:
        """Run a kernel; raise `KernelFailed`, with what it was given, if it does not run."""
        plan = spec.plan(**inputs, config=config)
        try:
            if self.device.index is None or self.device.index == torch.cuda.current_device():
                return plan.run()
            with torch.cuda.device(self.device):  # Triton launches on the current one
                return plan.run()
        except Exception as error:
            raise KernelFailed(spec.name, shapes_of(inputs), error) from error

    def check_model(self, model: ModelConfig, block_size: int) -> None:
        """Raise `ConfigError` for a model or block size that a kernel does not take."""
        check_model(self.kernels, model, block_size)

    def prepare(self, ctx: ForwardContext) -> Prepared:
        """Split the rows into decodes and chunks, and choose how far decodes are split."""
        if self._lacks_fp8 and ctx.kv is not None:
            refuse_fp8(ctx.any_kv.dtype, self.device)
        decodes = ctx.num_decodes if ctx.kv is not None else 0
        if ctx.kv is None:
            return split_rows(ctx, 1, 1)
        num_tokens, kv = sum(ctx.query_lens[decodes:]), ctx.any_kv
        parts = self._splits.of_chunks(ctx.kv_lens[decodes:], kv, num_tokens)
        return split_rows(ctx, self._splits.of_decodes(ctx.kv_lens[:decodes], kv), parts)

    def graph_key(
        self, kv_lens: list[int], kv: Tensor, chunk_lens: Sequence[int] = (), num_tokens: int = 0
    ) -> Hashable:
        """Return into how many parts the keys of either kind of rows are cut."""
        chunks = self._splits.of_chunks(chunk_lens, kv, num_tokens)
        return self._splits.of_decodes(kv_lens, kv), chunks

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        ctx: ForwardContext,
        *,
        scale: float,
        rope: tuple[Tensor, Tensor] | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Rotate and write in one kernel, then attend; see `Backend.attention`."""
        prepared: Prepared = ctx.prepared
        kv, scales = (None, None) if ctx.kv is None else (ctx.kv[layer], ctx.scales(layer))
        cos, sin = rope or (None, None)
        if kv is not None or rope is not None:
            q, k, *_ = self._run(
                "rope_and_cache",
                q.dtype,
                **{"q": q, "k": k, "v": v, "cos": cos, "sin": sin},
                **{"kv": kv, "slot_mapping": ctx.slot_mapping, "kv_scales": scales},
            )
        # What belongs to nobody must not be NaN to those who look at a whole batch.
        make = torch.zeros if ctx.padded else torch.empty
        out = make(q.shape, dtype=q.dtype, device=q.device)
        settings: dict[str, Any] = {"scale": scale, "window": window}
        cut = {**settings, "num_splits": prepared.splits}
        if prepared.num_decodes:
            self._decode(q, kv, prepared, {**settings, "kv_scales": scales}, out)
        if prepared.trees.num_tokens:
            seen = {**cut, "ancestors": prepared.ancestors}
            self._chunks(q, k, v, kv, scales, prepared.trees, False, seen, out)
        if prepared.chunks.num_tokens:
            self._chunks(q, k, v, kv, scales, prepared.chunks, prepared.fresh, cut, out)
        return out

    def _decode(
        self, q: Tensor, kv: Tensor | None, prepared: Prepared, settings: Any, out: Tensor
    ) -> None:
        rows, count = prepared.decodes, prepared.num_decodes
        self._run(
            "paged_decode",
            q.dtype,
            q=q[:count],
            kv=kv,
            block_tables=rows.block_tables,
            context_lens=rows.context_lens,
            num_splits=prepared.num_splits,
            out=out[:count],
            **settings,
        )

    def _chunks(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: Tensor | None,
        scales: Tensor | None,
        rows: Rows,
        fresh: bool,
        settings: Any,
        out: Tensor,
    ) -> None:
        # What a cache of another dtype holds is not what the new tokens say: read it back.
        fresh = kv is None or (fresh and kv.dtype == k.dtype)
        keys, values = (k, v) if kv is None or fresh else kv.unbind(0)
        inputs = {
            "q": q,
            "k": keys,
            "v": values,
            "query_starts": rows.query_starts,
            "context_lens": rows.context_lens,
            "block_tables": None if fresh else rows.block_tables,
            "kv_scales": None if fresh else scales,
            "num_tokens": rows.num_tokens,
        }
        if fresh and "ancestors" not in settings and self._prefers_library(inputs, settings):
            scale = settings["scale"]
            attend_whole_prompts(q, keys, values, rows.lens, rows.first, scale, out)
        else:
            self._run("prefill_attention", q.dtype, **inputs, **settings, out=out)

    def _prefers_library(self, inputs: Inputs, settings: Any) -> bool:
        """Whether torch's attention takes prompts that are whole in a step."""
        if self.prefill == "kernel" or why_not(inputs["q"], settings["window"]):
            return False
        spec, dtype = self.kernels["prefill_attention"], inputs["q"].dtype
        return self.prefill == "library" or self.tuned.library_is_faster(spec, dtype, inputs)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b.

        Few rows go to `gemv` where it was measured to beat the library, or is one that was put in.
        """
        if x.dim() == 2 and 1 <= len(x) <= 16 and weight.stride(1) == 1:
            spec, inputs = self.kernels["gemv"], {"x": x, "weight": weight, "bias": bias}
            config = self.tuned.better_than_library(spec, x.dtype, inputs)
            if config is not None or "gemv" in self.kernels.replaced:
                out: Tensor = self._launch(spec, inputs, config)
                return out
        return super().linear(x, weight, bias)

    def start_lora(self, x: Tensor, weights: LoRAWeights, batch: LoRABatch) -> Any:
        """Begin the first of two kernels beside what follows; see `Backend.start_lora`."""
        return self.lora.start(x, weights, batch)

    def add_lora(
        self, out: Tensor, x: Tensor, weights: LoRAWeights, batch: LoRABatch, started: Any = None
    ) -> Tensor:
        """Add to out, in place, in two kernels; see `Backend.add_lora`."""
        return self.lora.finish(out, x, weights, batch, started)

    def gain_lora(self, out: Tensor, gain: LoRAGain, batch: LoRABatch) -> Tensor:
        """Multiply out, in place, in one kernel; see `Backend.gain_lora`."""
        return gain_lora(self._run, out, gain, batch)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x over its root mean square, times weight; see `Backend.rms_norm`."""
        out: Tensor = self._run("rms_norm", x.dtype, x=x, weight=weight, eps=eps)
        return out

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (rms_norm(x + residual), x + residual) from one kernel."""
        inputs = {"x": x, "weight": weight, "eps": eps, "residual": residual}
        normed, total = self._run("rms_norm", x.dtype, **inputs)
        return normed, total

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Return x less its mean, over its spread, times weight, plus bias."""
        inputs = {"x": x, "weight": weight, "bias": bias, "eps": eps}
        out: Tensor = self._run("layer_norm", x.dtype, **inputs)
        return out

    def add_layer_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (layer_norm(x + residual), x + residual) from one kernel."""
        inputs = {"x": x, "weight": weight, "bias": bias, "eps": eps, "residual": residual}
        normed, total = self._run("layer_norm", x.dtype, **inputs)
        return normed, total

    def rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate q and k by cos, sin; see `Backend.rope`."""
        q, k = self._run("rope_and_cache", q.dtype, q=q, k=k, v=k, cos=cos, sin=sin)
        return q, k

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up of [gate | up]."""
        out: Tensor = self._run("silu_mul", gate_up.dtype, gate_up=gate_up)
        return out

    def gelu_mul(self, gate_up: Tensor, *, tanh: bool) -> Tensor:
        """Return gelu(gate) * up of [gate | up]; see `Backend.gelu_mul`."""
        activation = "gelu_tanh" if tanh else "gelu"
        inputs = {"gate_up": gate_up, "activation": activation}
        out: Tensor = self._run("silu_mul", gate_up.dtype, **inputs)
        return out

    def sample(self, logits: Tensor, **rows: Any) -> tuple[Tensor, Tensor]:
        """Return a token for each row of logits [R, V], [R] int64, and its log-probability [R].

        rows: tensors on the device, see `workbench.kernels.sample.plan`. Nothing waits for the
        host, so that a CUDA graph can hold it; the tokens are those of `workbench.sample.Sampler`.
        """
        tokens, logprobs, *_ = self._run("sample", logits.dtype, logits=logits, **rows)
        return tokens, logprobs


class TritonWithLibrary(TritonBackend):
    """The Triton backend, with torch's fused attention for prompts that are whole in a step."""

    name = "triton+sdpa"
    prefill = "library"
