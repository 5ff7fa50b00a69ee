"""The CPU backend over the C kernels of `kernels/cpu`, in float32 and bfloat16.

Weights are read where they lie, keys and values straight from the paged cache. A token's result has
the same bits whatever else is in its batch, however its prompt is chunked, and for any number of
threads. Attention multiplies in the dtype of the cache and sums in float32. Half precision, a pass
without a cache and weights that are not row-major are left to the SDPA backend that this one is
made from; gradients are refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.batch import ForwardContext, TreeMasks
from workbench.errors import ConfigError
from workbench.lora_batch import LoRABatch, LoRAGain, LoRAWeights
from workbench.ops.calls import Batch, check, functions
from workbench.ops.native_lora import add_lora, gain_lora
from workbench.ops.sdpa import SDPABackend

_DTYPES = (torch.float32, torch.bfloat16)
_NO_WINDOW = 1 << 40  # more tokens than any context has


class Trees(NamedTuple):
    """Where the masks of trees lie, their first token, and how many tokens and words they are."""

    ancestors: int | None
    first_token: int
    num_tokens: int
    num_words: int


NO_TREES = Trees(None, 0, 0, 0)


class NativeBackend(SDPABackend):
    """`Backend` whose operations are compiled C; `ConfigError` where they cannot be compiled."""

    name = "native"
    batch_invariant = True
    dtypes = _DTYPES

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        if device.type != "cpu":
            raise ConfigError("backend", "native", f"runs on a CPU, not on {device}", "Use sdpa.")
        self._bind(functions())

    def _bind(self, c: dict[str, Any]) -> None:
        """Take what is called by name: the C functions."""
        self._embedding, self._angles, self._attention = c["embedding"], c["angles"], c["attention"]
        self._linear, self._rms_norm, self._silu_mul = c["linear"], c["rms_norm"], c["silu_mul"]
        self._lora, self._lora_gain = c["lora"], c["lora_gain"]

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory for a result."""
        return torch.empty(shape, dtype=dtype)

    def prepare(self, ctx: ForwardContext) -> Any:
        """Return the step's rows as C reads them; without a cache, what SDPA needs."""
        if ctx.kv is None or ctx.any_kv.dtype not in _DTYPES:  # 8 bits are left to SDPA, too
            return super().prepare(ctx)
        assert ctx.slot_mapping is not None, "a context with a cache has slots"
        assert ctx.block_tables is not None, "a context with a cache has block tables"
        assert ctx.query_starts is not None, "a context with a cache has query starts"
        assert ctx.context_lens is not None, "a context with a cache has context lengths"
        kv, tables = ctx.any_kv, ctx.block_tables
        return Batch(
            ctx.slot_mapping.data_ptr(),
            tables.data_ptr(),
            ctx.query_starts.data_ptr(),
            ctx.context_lens.data_ptr(),
            len(ctx.query_lens),
            len(ctx.slot_mapping),
            tables.shape[1],
            *kv.shape[1:],
            kv.dtype is torch.bfloat16,
            torch.get_num_threads(),
            *(NO_TREES if ctx.trees is None else trees_of(ctx.trees, ctx.query_lens)),
        )

    def embedding(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        """Return the rows of weight [vocab, N] that token_ids [T] name; `IndexError` for others."""
        if not weight.is_contiguous() or token_ids.stride() != (1,):
            return super().embedding(token_ids, weight)
        if torch.is_grad_enabled():
            _refuse_gradients(weight)
        (vocab, size), tokens = weight.shape, token_ids.shape[0]
        out = self._empty((tokens, size), weight.dtype)
        failure = self._embedding(
            token_ids.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            tokens,
            size * weight.element_size(),
            vocab,
        )
        check(failure)
        return out

    def angles(
        self, positions: Tensor, frequencies: Tensor, amplitude: float
    ) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) [T, D/2]; see `Backend.angles`."""
        if frequencies.dim() != 1 or positions.stride() != (1,):
            return super().angles(positions, frequencies, amplitude)
        tokens, half = positions.shape[0], frequencies.shape[0]
        cos = self._empty((tokens, half), torch.float32)
        sin = self._empty((tokens, half), torch.float32)
        self._angles(
            positions.data_ptr(),
            frequencies.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            tokens,
            half,
            amplitude,
            torch.get_num_threads(),
        )
        return cos, sin

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b, reading the weight [out, in] row by row; see `Backend.linear`."""
        dtype = x.dtype
        if dtype not in _DTYPES or weight.dtype is not dtype or not weight.is_contiguous():
            return F.linear(x, weight, bias)
        if x.dim() != 2:
            flat = self.linear(x.reshape(-1, x.shape[-1]), weight, bias)
            return flat.view(*x.shape[:-1], -1)
        if torch.is_grad_enabled():
            _refuse_gradients(x, weight)
        x = x if x.stride(1) == 1 else x.contiguous()
        (rows, inputs), outputs = x.shape, weight.shape[0]
        out = self._empty((rows, outputs), dtype)
        self._linear(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            outputs,
            x.stride(0),
            dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return out

    def add_lora(
        self, out: Tensor, x: Tensor, weights: LoRAWeights, batch: LoRABatch, started: Any = None
    ) -> Tensor:
        """Add to out, in place, what each token's variant makes of x; see `Backend.add_lora`."""
        if x.dtype not in _DTYPES or not x.dtype == weights.a.dtype == out.dtype:
            return super().add_lora(out, x, weights, batch)
        if torch.is_grad_enabled():
            _refuse_gradients(x, out)
        return add_lora(self._lora, out, x, weights, batch)

    def gain_lora(self, out: Tensor, gain: LoRAGain, batch: LoRABatch) -> Tensor:
        """Multiply out, in place, by what each token's variant says; see `Backend.gain_lora`."""
        if out.dtype not in _DTYPES or batch.gains is None:
            return super().gain_lora(out, gain, batch)
        return gain_lora(self._lora_gain, out, gain, batch.gains.rows, batch.tiles)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x over its root mean square, times weight; rounded once, at the end."""
        if x.dtype not in _DTYPES or weight.dtype is not x.dtype:
            return super().rms_norm(x, weight, eps)
        return self._norm(x, None, weight, eps)[0]

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (rms_norm(x + residual), x + residual) in one pass."""
        if x.dtype not in _DTYPES or not x.dtype == residual.dtype == weight.dtype:
            return super().add_rms_norm(x, residual, weight, eps)
        return self._norm(x, residual, weight, eps)

    def _norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            _refuse_gradients(x, weight)
        x = x.contiguous()
        normed, total = self._empty(x.shape, x.dtype), x
        added = None
        if residual is not None:
            residual, total = residual.contiguous(), self._empty(x.shape, x.dtype)
            added = residual.data_ptr()
        size = weight.shape[0]
        self._rms_norm(
            x.data_ptr(),
            added,
            weight.data_ptr(),
            normed.data_ptr(),
            total.data_ptr(),
            x.numel() // size,
            size,
            eps,
            x.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return normed, total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up of [gate | up]; rounded once, at the end."""
        if gate_up.dtype not in _DTYPES:
            return super().silu_mul(gate_up)
        if torch.is_grad_enabled():
            _refuse_gradients(gate_up)
        gate_up = gate_up.contiguous()
        size = gate_up.shape[-1] // 2
        out = self._empty((*gate_up.shape[:-1], size), gate_up.dtype)
        self._silu_mul(
            gate_up.data_ptr(),
            out.data_ptr(),
            out.numel() // size,
            size,
            gate_up.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return out

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
        """Rotate, write k, v to the cache and attend, in one call; see `Backend.attention`."""
        batch = ctx.prepared
        if not isinstance(batch, Batch) or q.dtype not in _DTYPES:
            return super().attention(q, k, v, layer, ctx, scale=scale, rope=rope, window=window)
        assert ctx.kv is not None, "rows prepared for C have a cache"
        if torch.is_grad_enabled():
            _refuse_gradients(q, k, v)
        q, k, v = _packed_heads(q), _packed_heads(k), _packed_heads(v)
        out = self._empty(q.shape, q.dtype)
        failure = self._attention(
            ctypes.addressof(batch),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            ctx.kv[layer].data_ptr(),
            None if rope is None else rope[0].data_ptr(),
            None if rope is None else rope[1].data_ptr(),
            q.stride(0),
            k.stride(0),
            v.stride(0),
            q.shape[1],
            scale,
            _NO_WINDOW if window is None else window,
            q.dtype is torch.bfloat16,
        )
        check(failure)
        return out


def trees_of(masks: TreeMasks, query_lens: list[int]) -> Trees:
    """Return masks as C reads them, as long as they live; query_lens: of the batch's rows."""
    first_row, _, ancestors = masks
    return Trees(ancestors.data_ptr(), sum(query_lens[:first_row]), *ancestors.shape)


def _packed_heads(x: Tensor) -> Tensor:
    """Return x [T, heads, D] with the heads of a token side by side, as they are in qkv's rows."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _refuse_gradients(*tensors: Tensor) -> None:
    if any(tensor.requires_grad for tensor in tensors):
        raise ConfigError("backend", "native", "computes no gradients", "Use sdpa to train.")
