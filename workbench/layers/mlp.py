"""The gated feed-forward part of a decoder layer (SwiGLU, GeGLU), with gate and up as one matrix.

One matrix product in, one out; the activation between them is the backend's.
"""

from __future__ import annotations

from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers.linear import Linear


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)); the rows of `gate_up_proj` are [gate | up].

    act: silu, gelu (by the error function), or gelu_tanh, its approximation.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = Linear(hidden, 2 * inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map x [T, hidden] to [T, hidden]."""
        gate_up = self.gate_up_proj(x, ctx)
        if self.activation == "silu":
            inner = ctx.backend.silu_mul(gate_up)
        else:
            inner = ctx.backend.gelu_mul(gate_up, tanh=self.activation == "gelu_tanh")
        out: Tensor = self.down_proj(inner, ctx)
        return out
