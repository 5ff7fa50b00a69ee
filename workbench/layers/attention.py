"""Causal self-attention: grouped query heads, one input matrix, an optional sliding window.

It projects, rotates and projects back; where keys and values live and how attention is computed is
the backend's business.
"""

from __future__ import annotations

from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers.linear import Linear


class Attention(nn.Module):
    """The attention of layer `layer`: H query heads share K key/value heads of size D.

    The rows of `qkv_proj` are [q | k | v] with H*D, K*D and K*D rows. `window`: how many tokens a
    token sees, itself included (None: all before it).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.window = config.window(layer)
        q_rows, kv_rows = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.split_sizes = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        self.qkv_proj = Linear(config.hidden_size, q_rows + 2 * kv_rows, bias=config.qkv_bias)
        self.o_proj = Linear(q_rows, config.hidden_size, bias=config.output_bias)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], ctx: ForwardContext) -> Tensor:
        """Map x [T, hidden] to [T, hidden]; rope is (cos, sin), each [T, D/2] float32."""
        heads = self.qkv_proj(x, ctx).view(x.shape[0], -1, self.head_dim)  # [T, H + 2K, D]
        q, k, v = heads.split_with_sizes(self.split_sizes, 1)
        group_ctx = ctx.of(self.layer)
        attended = ctx.backend.attention(
            q, k, v, self.layer, group_ctx, scale=self.scale, rope=rope, window=self.window
        )
        out: Tensor = self.o_proj(attended.flatten(1), ctx)
        return out

    def extra_repr(self) -> str:
        """Heads and window, for the module tree."""
        window = "" if self.window is None else f", window={self.window}"
        return f"heads={self.num_heads}/{self.num_kv_heads}x{self.head_dim}{window}"
