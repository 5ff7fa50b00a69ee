"""The plain torch backend: the oracle that every faster one is checked against.

Each operation is written as its definition, in float32 where the definition sums; attention loops
over the rows. Slow, short, differentiable without a cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.describe import Described
from workbench.lora_batch import LoRABatch, LoRAGain, LoRAWeights
from workbench.ops.paging import gather, write


class ReferenceBackend(Described):
    """`Backend` in plain torch, on any device and in any float dtype."""

    name = "reference"
    capturable = False  # loops over rows by lengths that the host knows
    batch_invariant = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.chosen_because = ""  # filled where `auto` chose

    def describe(self) -> dict[str, Any]:
        """Return which backend this is, why, and where it runs."""
        facts = {"name": self.name, "device": self.device}
        return {**facts, "chosen": self.chosen_because} if self.chosen_because else facts

    def check_model(self, model: ModelConfig, block_size: int) -> None:
        """Nothing to check: any shape will do."""

    def prepare(self, ctx: ForwardContext) -> Any:
        """Nothing to prepare: every row is worked out where it is needed."""
        return None

    def graph_key(
        self, kv_lens: list[int], kv: Tensor, chunk_lens: Sequence[int] = (), num_tokens: int = 0
    ) -> Hashable:
        """Never asked: see `capturable`."""
        raise NotImplementedError(f"{self.name} cannot be captured")

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
        """Write k, v to the cache (if any) and attend row by row; see `Backend.attention`."""
        if rope is not None:
            q, k = self.rope(q, k, *rope)
        outputs = []
        for row, keys, values, queries in self._rows(q, k, v, layer, ctx):
            mask = row_mask(ctx, row, window)
            outputs.append(attend(queries, keys, values, mask, scale))
        return torch.cat(outputs) if outputs else torch.empty_like(q)

    def _rows(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, ctx: ForwardContext
    ) -> list[tuple[int, Tensor, Tensor, Tensor]]:
        """Return (row, keys [L, K, D], values [L, K, D], queries [n, H, D]) of every row."""
        queries = torch.split(q, ctx.query_lens)
        if ctx.kv is None:
            keys, values = torch.split(k, ctx.query_lens), torch.split(v, ctx.query_lens)
            parts = zip(keys, values, queries, strict=True)
            return [(row, *part) for row, part in enumerate(parts)]
        assert ctx.slot_mapping is not None, "a context with a cache has slots"
        assert ctx.block_tables is not None, "a context with a cache has block tables"
        kv = ctx.kv[layer]
        scales = ctx.scales(layer)
        write(kv, ctx.slot_mapping, k, v, scales)
        rows = []
        for row, length in enumerate(ctx.kv_lens):
            num_blocks = -(-length // kv.shape[2])
            k_all, v_all = gather(kv, ctx.block_tables[row : row + 1, :num_blocks], None, scales)
            rows.append((row, k_all[0, :length], v_all[0, :length], queries[row]))
        return rows

    def embedding(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        """Return rows of weight [vocab, N]; see `Backend.embedding`."""
        return F.embedding(token_ids, weight)

    def angles(
        self, positions: Tensor, frequencies: Tensor, amplitude: float
    ) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) of positions times frequencies; see `Backend.angles`."""
        return angles(positions, frequencies, amplitude)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b; see `Backend.linear`."""
        return F.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x over its root mean square, times weight; see `Backend.rms_norm`."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * normed.to(x.dtype)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (rms_norm(x + residual), x + residual)."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Return x less its mean, over its spread, times weight, plus bias."""
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def add_layer_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (layer_norm(x + residual), x + residual)."""
        total = x + residual
        return self.layer_norm(total, weight, bias, eps), total

    def rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate each pair (i, i + D/2) of q and k by its angle; see `Backend.rope`."""
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up of [gate | up]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def gelu_mul(self, gate_up: Tensor, *, tanh: bool) -> Tensor:
        """Return gelu(gate) * up of [gate | up]; see `Backend.gelu_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh" if tanh else "none") * up

    def prepare_lora(self, batch: LoRABatch) -> Any:
        """Nothing to prepare: variants are taken one after the other."""
        return None

    def start_lora(self, x: Tensor, weights: LoRAWeights, batch: LoRABatch) -> Any:
        """Nothing to begin: all is done when the outputs are there."""
        return None

    def add_lora(
        self, out: Tensor, x: Tensor, weights: LoRAWeights, batch: LoRABatch, started: Any = None
    ) -> Tensor:
        """Return out plus what each token's adapters add, summed in float32; see `Backend`."""
        out = out.clone()
        parts = list(pairwise(weights.bounds))
        for group in batch.groups:
            rows, scales, shifts = batch.rank_rows(group)
            inputs, added = x[group.positions].float(), out[group.positions].float()
            for part, (begin, end) in enumerate(parts):
                inner = inputs @ weights.a[rows, part].float().T * scales + shifts  # [n, r]
                added[:, begin:end] += inner @ weights.b[rows, begin:end].float()
            out[group.positions] = added.to(out.dtype)
        return out

    def gain_lora(self, out: Tensor, gain: LoRAGain, batch: LoRABatch) -> Tensor:
        """Return out times each token's gains, plus its shifts, in float32; see `Backend`."""
        out = out.clone()
        for group in batch.groups:
            at = group.positions
            out[at] = batch.gained(group, gain, out[at].float()).to(out.dtype)
        return out


def angles(positions: Tensor, frequencies: Tensor, amplitude: float) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) times amplitude [T, D/2] float32, for positions [T] and frequencies [D/2]
    or [T, D/2]."""
    turned = positions.unsqueeze(-1).float() * frequencies
    if amplitude == 1.0:
        return turned.cos(), turned.sin()
    return turned.cos() * amplitude, turned.sin() * amplitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [T, heads, D] rotated by cos, sin [T, D/2], which are first cast to x's dtype."""
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_mask(
    num_queries: int, num_keys: int, window: int | None, device: torch.device
) -> Tensor:
    """Return [num_queries, num_keys] bool, True where a query may look.

    The queries are the last `num_queries` of the `num_keys` positions. With a window of w, a token
    sees itself and the w - 1 tokens before it.
    """
    ends = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
    keys = torch.arange(num_keys, device=device).unsqueeze(0)
    mask = keys <= ends
    return mask if window is None else mask & (keys > ends - window)


def row_mask(ctx: ForwardContext, row: int, window: int | None) -> Tensor:
    """Return [new tokens, keys] bool of a row: True where a token may look."""
    num_new, num_keys, device = ctx.query_lens[row], ctx.kv_lens[row], ctx.positions.device
    mask = causal_mask(num_new, num_keys, window, device)
    trees = ctx.trees
    if trees is None or not trees.first_row <= row < trees.first_row + trees.num_rows:
        return mask
    begin = sum(ctx.query_lens[trees.first_row : row])
    words = trees.ancestors[begin : begin + num_new]
    bits = torch.arange(num_new, device=device)
    mask[:, num_keys - num_new :] &= ((words[:, bits // 32] >> (bits % 32)) & 1).bool()
    return mask


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return softmax(q k^T * scale) v, masked, for q [n, H, D], k and v [L, K, D]."""
    groups = q.shape[1] // k.shape[1]
    k = k.to(q.dtype).repeat_interleave(groups, dim=1)
    v = v.to(q.dtype).repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k).float() * scale
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).to(q.dtype)
    return torch.einsum("hqk,khd->qhd", weights, v)
