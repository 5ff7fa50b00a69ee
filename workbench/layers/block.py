"""One decoder layer: attention and feed-forward, each behind a norm that also adds the residual.

The residual stream travels as two tensors, `x` (the last part's output) and `residual` (everything
before it), and is summed inside the next norm: one pass over memory instead of two.
"""

from __future__ import annotations

from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers.attention import Attention
from workbench.layers.mlp import GatedMLP
from workbench.layers.moe import SparseMLP
from workbench.layers.norm import RMSNorm


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer number `layer`. The residual stream after it is x + residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        sparse = config.num_experts > 0
        self.mlp: nn.Module = SparseMLP(config) if sparse else GatedMLP(config)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        rope: tuple[Tensor, Tensor],
        ctx: ForwardContext,
    ) -> tuple[Tensor, Tensor]:
        """Map (x, residual), each [T, hidden], to the next; residual is None in the first layer."""
        x, residual = self.attention_norm(x, residual, ctx)
        x = self.attention(x, rope, ctx)
        x, residual = self.mlp_norm(x, residual, ctx)
        x = self.mlp(x, ctx)
        return x, residual
