"""The backend on our own Triton kernels: CUDA natively, a CPU only through Triton's interpreter.

A step's rows are split once, in `prepare`: decode rows go to `paged_decode`, the others to
`prefill_attention`. Everything that decides a grid is taken from lengths that the host knows, so no
call waits for the GPU. It has no gradients: training uses `reference` or `sdpa`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from operator import is_not
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.errors import ConfigError
from workbench.ops.reference import ReferenceBackend

if TYPE_CHECKING:
    from workbench.kernels.launch import Plan
    from workbench.kernels.spec import KernelSpec

_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(slots=True)
class _Rows:
    """Some rows of a batch, as the attention kernels take them; None where there is no cache."""

    query_starts: Tensor | None
    context_lens: Tensor | None
    block_tables: Tensor | None
    num_tokens: int


@dataclass(slots=True)
class _Prepared:
    """num_decodes rows go to the decode kernel in num_splits parts; then come trees, then chunks.

    fresh: no chunk has an older context, so its keys are the new tokens' own. ancestors [T, W]: the
    trees' masks at their packed positions; None where there are no trees.
    """

    num_decodes: int
    num_splits: int
    decodes: _Rows
    trees: _Rows
    chunks: _Rows
    fresh: bool
    ancestors: Tensor | None


class TritonBackend(ReferenceBackend):
    """`Backend` on `workbench.kernels`, with the tuned configurations of the GPU it runs on.

    `kernels` holds the specs by name and may be changed between steps: put your own `KernelSpec`
    there and the engine runs it.
    """

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        """Raise `ConfigError` where the kernels cannot run, saying what would work."""
        super().__init__(device)
        require_triton(device)
        from workbench.kernels.launch import sm_count
        from workbench.kernels.paged_decode_splits import choose_splits
        from workbench.kernels.registry import SPECS
        from workbench.kernels.tuning import TunedTable

        self.kernels: dict[str, KernelSpec] = dict(SPECS)
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.tuned = TunedTable.load(named)
        self._choose_splits = lru_cache(choose_splits)
        self._num_sms = sm_count(device)
        self._known: list[KernelSpec] = []
        self._generation = 0
        self.capturable = device.type == "cuda"

    def describe(self) -> dict[str, Any]:
        """Return where it runs and which tuned configurations it has used."""
        return {**super().describe(), "tuned": self.tuned.describe()}

    def _run(self, kernel: str, dtype: torch.dtype, **inputs: Any) -> Any:
        spec = self.kernels[kernel]
        return self._launch(spec.plan(**inputs, config=self.tuned.config(spec, dtype, inputs)))

    def _launch(self, plan: Plan) -> Any:
        if self.device.index is None or self.device.index == torch.cuda.current_device():
            return plan.run()
        with torch.cuda.device(self.device):  # Triton launches on the current one
            return plan.run()

    def prepare(self, ctx: ForwardContext) -> _Prepared:
        """Split the rows into decodes and chunks, and choose how far decodes are split."""
        cached = ctx.kv is not None
        decodes = ctx.num_decodes if cached else 0
        lens = ctx.kv_lens[:decodes]
        splits = 1
        if lens:
            splits = self._splits(lens, ctx.any_kv)
        first, ancestors = decodes, None
        if ctx.trees is not None:
            first = decodes + ctx.trees.num_rows
            ancestors = ctx.trees.ancestors  # itself where nothing precedes: a graph reads it there
            ancestors = F.pad(ancestors, (0, 0, decodes, 0)) if decodes else ancestors
        chunk_lens = ctx.query_lens[first:]
        fresh = not cached or chunk_lens == ctx.kv_lens[first:]
        return _Prepared(
            decodes,
            splits,
            _rows(ctx, slice(0, decodes), decodes),
            _rows(ctx, slice(decodes, first), sum(ctx.query_lens[decodes:first])),
            _rows(ctx, slice(first, None), sum(chunk_lens)),
            fresh,
            ancestors,
        )

    def _splits(self, lens: list[int], kv: Tensor) -> int:
        """Return into how many parts decodes are cut: one of few numbers, as each is a graph's.

        Lengths are rounded up a little, so that most steps find the choice made.
        """
        rows, heads = len(lens), kv.shape[3]
        longest, mean = (64 * -(-n // 64) for n in (max(lens), -(-sum(lens) // rows)))
        chosen = self._choose_splits(rows, heads, longest, rows * mean, self._num_sms)
        return _SPLITS[bisect_right(_SPLITS, chosen) - 1]

    def graph_key(self, kv_lens: list[int], kv: Tensor) -> Hashable:
        """Return the number of splits, and which kernels there are: replaced ones differ."""
        kernels = list(self.kernels.values())
        if len(kernels) != len(self._known) or any(map(is_not, kernels, self._known)):
            self._known, self._generation = kernels, self._generation + 1
        return self._splits(kv_lens, kv), self._generation

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
        prepared: _Prepared = ctx.prepared
        kv = None if ctx.kv is None else ctx.kv[layer]
        cos, sin = rope or (None, None)
        if kv is not None or rope is not None:
            q, k, *_ = self._run(
                "rope_and_cache",
                q.dtype,
                **{"q": q, "k": k, "v": v, "cos": cos, "sin": sin},
                **{"kv": kv, "slot_mapping": ctx.slot_mapping},
            )
        # What belongs to nobody must not be NaN to those who look at a whole batch.
        make = torch.zeros if ctx.padded else torch.empty
        out = make(q.shape, dtype=q.dtype, device=q.device)
        settings: dict[str, Any] = {"scale": scale, "window": window}
        if prepared.num_decodes:
            self._decode(q, kv, prepared, settings, out)
        if prepared.trees.num_tokens:
            seen = {**settings, "ancestors": prepared.ancestors}
            self._chunks(q, k, v, kv, prepared.trees, False, seen, out)
        if prepared.chunks.num_tokens:
            self._chunks(q, k, v, kv, prepared.chunks, prepared.fresh, settings, out)
        return out

    def _decode(
        self, q: Tensor, kv: Tensor | None, prepared: _Prepared, settings: Any, out: Tensor
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
        rows: _Rows,
        fresh: bool,
        settings: Any,
        out: Tensor,
    ) -> None:
        # What a cache of another dtype holds is not what the new tokens say: read it back.
        fresh = kv is None or (fresh and kv.dtype == k.dtype)
        keys, values = (k, v) if kv is None or fresh else kv.unbind(0)
        self._run(
            "prefill_attention",
            q.dtype,
            q=q,
            k=keys,
            v=values,
            query_starts=rows.query_starts,
            context_lens=rows.context_lens,
            block_tables=None if fresh else rows.block_tables,
            num_tokens=rows.num_tokens,
            out=out,
            **settings,
        )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b; by `gemv` for few rows where it was measured to beat the library."""
        if self.tuned.rows and x.dim() == 2 and 1 <= len(x) <= 16 and weight.stride(1) == 1:
            spec, inputs = self.kernels["gemv"], {"x": x, "weight": weight, "bias": bias}
            config = self.tuned.better_than_library(spec, x.dtype, inputs)
            if config is not None:
                out: Tensor = self._launch(spec.plan(**inputs, config=config))
                return out
        return super().linear(x, weight, bias)

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

    def rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate q and k by cos, sin; see `Backend.rope`."""
        q, k = self._run("rope_and_cache", q.dtype, q=q, k=k, v=k, cos=cos, sin=sin)
        return q, k

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up of [gate | up]."""
        out: Tensor = self._run("silu_mul", gate_up.dtype, gate_up=gate_up)
        return out

    def sample(self, logits: Tensor, **rows: Any) -> tuple[Tensor, Tensor]:
        """Return a token for each row of logits [R, V], [R] int64, and its log-probability [R].

        rows: tensors on the device, see `workbench.kernels.sample.plan`. Nothing waits for the
        host, so that a CUDA graph can hold it; the tokens are those of `workbench.sample.Sampler`.
        """
        tokens, logprobs, *_ = self._run("sample", logits.dtype, logits=logits, **rows)
        return tokens, logprobs


def _rows(ctx: ForwardContext, rows: slice, num_tokens: int) -> _Rows:
    """Return the kernels' view of some rows."""
    starts, lens = _aligned(ctx.query_starts, slice(rows.start, None)), ctx.context_lens
    return _Rows(starts, _aligned(lens, rows), _aligned(ctx.block_tables, rows), num_tokens)


def _aligned(whole: Tensor | None, rows: slice) -> Tensor | None:
    """Return some rows of a tensor, copied where their address is one that kernels would be
    compiled anew for: that takes seconds, in the middle of a step."""
    part = None if whole is None else whole[rows]
    return part if part is None or part.data_ptr() % 16 == 0 else part.clone()


def require_triton(device: torch.device) -> None:
    """Raise `ConfigError` unless Triton kernels can run on a device."""
    problem, fix = "", "Use the `sdpa` backend"
    if find_spec("triton") is None:
        problem, fix = "triton is not installed", f"{fix}, or install triton (Linux only)."
    elif device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            problem, fix = f"the GPU is of capability {major}.{minor}, below 8.0", f"{fix}."
    else:
        from workbench.kernels.launch import INTERPRETED

        if not INTERPRETED:
            problem = f"Triton has no compiler for device {device.type!r}"
            fix += (
                ", use a CUDA GPU, or start Python with TRITON_INTERPRET=1, which interprets the "
                "kernels (exact, and thousands of times slower)."
            )
    if problem:
        raise ConfigError("backend", "triton", problem, fix)
