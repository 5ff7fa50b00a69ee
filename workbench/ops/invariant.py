"""Backends for `batch_invariant=True`: a token's results have the same bits in any batch.

A result is worked out in one order that depends on its own row alone: not on how many rows there
are, how a prompt was cut into chunks, or whether a token is decoded or computed again. So a
request gives the same tokens and log-probabilities alone and in any company. The native backend is
like this by itself. He & Thinking Machines, "Defeating nondeterminism in LLM inference" (2025),
say where the bits go otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.errors import ConfigError
from workbench.ops.reference import ReferenceBackend, attend, row_mask
from workbench.ops.triton import TritonBackend
from workbench.ops.triton_rows import Prepared, Rows
from workbench.ops.triton_splits import Uncut

if TYPE_CHECKING:
    from workbench.kernels.launch import Config
    from workbench.kernels.spec import Inputs, KernelSpec


class InvariantReference(ReferenceBackend):
    """The oracle: whatever sums is done for one token at a time, over just what it sees."""

    batch_invariant = True

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
        """Write k, v to the cache (if any) and attend token by token."""
        if rope is not None:
            q, k = self.rope(q, k, *rope)
        outputs = []
        for row, keys, values, queries in self._rows(q, k, v, layer, ctx):
            for query, seen in zip(queries, row_mask(ctx, row, window), strict=True):
                every = torch.ones(1, int(seen.sum()), dtype=torch.bool, device=q.device)
                outputs.append(attend(query[None], keys[seen], values[seen], every, scale))
        return torch.cat(outputs) if outputs else torch.empty_like(q)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b, a row at a time."""
        linear = super().linear
        return _by_row(lambda row: linear(row, weight, bias), x, weight.shape[0])

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x over its root mean square, times weight, a row at a time."""
        norm = super().rms_norm
        return _by_row(lambda row: norm(row, weight, eps), x, x.shape[-1])

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Return x less its mean, over its spread, times weight, plus bias, a row at a time."""
        norm = super().layer_norm
        return _by_row(lambda row: norm(row, weight, bias, eps), x, x.shape[-1])


def _by_row(compute: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """Return `compute` of each row [1, N] of x [..., N], put together again."""
    rows = x.reshape(-1, x.shape[-1])
    parts = [compute(rows[i : i + 1].contiguous()) for i in range(len(rows))]
    result = torch.cat(parts) if parts else x.new_empty(0, size)
    return result.view(*x.shape[:-1], size)


class InvariantTriton(TritonBackend):
    """Our kernels with tiles that depend on a model's shape alone.

    Decodes, chunks and trees go through one attention kernel, which walks a context from its start
    in tiles of one size and never splits it; products through `matmul`. So long contexts in small
    batches are slow. Tuned tables, which go by the batch's size, are not read.
    """

    batch_invariant = True
    _cuts = Uncut

    def _config(self, spec: KernelSpec, dtype: torch.dtype, inputs: Inputs) -> Config | None:
        if spec.name != "prefill_attention":
            return None  # the others' defaults depend on widths alone
        return attention_tile(**inputs)

    def check_model(self, model: ModelConfig, block_size: int) -> None:
        """Raise `ConfigError` for what the kernels do not take, or not in this mode."""
        super().check_model(model, block_size)
        if any(model.windows) and block_size % 16:
            problem = "prefill_attention takes blocks of a multiple of 16 where there are windows"
            fix = 'Use block_size=16, or backend="reference", or leave batch_invariant out.'
            raise ConfigError("block_size", block_size, problem, fix)

    def prepare(self, ctx: ForwardContext) -> Prepared:
        """Split the rows as ever; decodes are chunks of one token."""
        if ctx.query_starts is None:  # a graph's rows: all decode
            count = len(ctx.query_lens) + 1
            ctx.query_starts = torch.arange(count, dtype=torch.int32, device=self.device)
        return super().prepare(ctx)

    def _decode(
        self, q: Tensor, kv: Tensor | None, prepared: Prepared, settings: Any, out: Tensor
    ) -> None:
        scales = settings.pop("kv_scales")
        self._chunks(q, q, q, kv, scales, prepared.decodes, False, settings, out)

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
        # From the cache, as later on.
        super()._chunks(q, k, v, kv, scales, rows, False, settings, out)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b by `matmul`."""
        flat = x.reshape(-1, x.shape[-1])
        flat = flat if flat.stride(1) == 1 else flat.contiguous()
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        out: Tensor = self._run("matmul", x.dtype, x=flat, weight=weight, bias=bias)
        return out.view(*x.shape[:-1], len(weight))


def attention_tile(q: Tensor, k: Tensor, window: int | None = None, **inputs: Any) -> Config:
    """Return the one tile of a model's attention, whatever the batch.

    A window's keys are counted from wherever its table begins, so tiles of keys must not be longer
    than a block: else they would lie differently from step to step.
    """
    width, group = q.shape[2], q.shape[1] // k.shape[-2]
    narrow, rows = q.element_size() == 4, 16 if q.element_size() == 4 else 64
    keys = 32 if narrow or width > 128 else 64
    if window is not None and inputs.get("block_tables") is not None:
        block_size = k.shape[1]
        keys = min(keys, block_size & -block_size)
        assert keys >= 16, "see `check_model`"
    while rows < group:
        rows *= 2
    tile = {"BLOCK_M": rows, "BLOCK_N": keys, "TMA": 0, "HOPPER": 0}
    return {**tile, "num_warps": 4, "num_stages": 2}
