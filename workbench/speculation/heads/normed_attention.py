"""Attention as Qwen3 has it: queries and keys are normed per head; Qwen3-Next's gate and rotation.

Used by DFlash's layers and by MTP blocks that bring `q_norm` and `k_norm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers import Attention, Linear, RMSNorm


class NormedAttention(Attention):
    """Attention whose q and k heads [D] are normed before they are rotated.

    gated: q_proj has 2D rows per head, [query | gate], and the heads' outputs are multiplied by
    sigmoid(gate). rotary_dim: how many of a head's first dimensions are rotated; all if None.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        gated: bool = False,
        rotary_dim: int | None = None,
    ) -> None:
        super().__init__(config, layer)
        self.gated, self.rotary_dim = gated, rotary_dim
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps)
        if gated:
            rows = self.qkv_proj.out_features + self.num_heads * self.head_dim
            self.qkv_proj = Linear(config.hidden_size, rows, bias=config.qkv_bias)

    def project(self, x: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, gate [T, H, D] and k, v [T, K, D] of x [T, hidden]; q and k normed.

        Without a gate, it has no columns.
        """
        heads, dim = self.num_heads, self.head_dim
        q_rows = heads * dim * (2 if self.gated else 1)
        kv_rows = self.num_kv_heads * dim
        q, k, v = self.qkv_proj(x, ctx).split([q_rows, kv_rows, kv_rows], dim=-1)
        q, gate = q.reshape(len(x), heads, -1).tensor_split([dim], dim=-1)
        k, v = k.reshape(len(x), -1, dim), v.reshape(len(x), -1, dim)
        return self._normed(q, self.q_norm, ctx), gate, self._normed(k, self.k_norm, ctx), v

    def _normed(self, x: Tensor, norm: RMSNorm, ctx: ForwardContext) -> Tensor:
        flat: Tensor = norm(x.reshape(-1, self.head_dim), None, ctx)[0]
        return flat.reshape(x.shape)

    def rotated(
        self, q: Tensor, k: Tensor, rope: tuple[Tensor, Tensor], ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """Return q and k with their first `rotary_dim` dimensions rotated."""
        if self.rotary_dim is None:
            q, k = ctx.backend.rope(q, k, *rope)
            return q, k
        cut = self.rotary_dim
        turned = ctx.backend.rope(q[..., :cut].contiguous(), k[..., :cut].contiguous(), *rope)
        return (
            torch.cat((turned[0], q[..., cut:]), dim=-1),
            torch.cat((turned[1], k[..., cut:]), dim=-1),
        )

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], ctx: ForwardContext) -> Tensor:
        """Map x [T, hidden] to [T, hidden]; rope is (cos, sin), each [T, rotated / 2] float32."""
        q, gate, k, v = self.project(x, ctx)
        q, k = self.rotated(q, k, rope, ctx)
        attended = ctx.backend.attention(q, k, v, self.layer, ctx.of(self.layer), scale=self.scale)
        if self.gated:
            attended = attended * gate.sigmoid()
        out: Tensor = self.o_proj(attended.flatten(1), ctx)
        return out
