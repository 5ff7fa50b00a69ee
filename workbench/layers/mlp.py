"""The gated feed-forward part of a decoder layer (SwiGLU), with gate and up as one matrix.

One matrix product in, one out; the activation between them is the backend's.
"""

from __future__ import annotations

from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers.linear import Linear


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); the rows of `gate_up_proj` are [gate | up]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = Linear(hidden, 2 * inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map x [T, hidden] to [T, hidden]."""
        out: Tensor = self.down_proj(ctx.backend.silu_mul(self.gate_up_proj(x, ctx)), ctx)
        return out
