"""RMS and layer normalisation with the residual add in front, so that a backend can fuse them.

Used twice in a decoder layer and once at the end of a model. The families that ship have RMS norms;
`LayerNorm` is for models of your own (`load_model(..., families=...)`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.batch import ForwardContext


class RMSNorm(nn.Module):
    """x over its root mean square, times a learned weight [size]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(
        self, x: Tensor, residual: Tensor | None, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """Return (norm(x + residual), x + residual), both [T, size]; None counts as zeros."""
        if residual is None:
            return ctx.backend.rms_norm(x, self.weight, self.eps), x
        return ctx.backend.add_rms_norm(x, residual, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Size and epsilon, for the module tree."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.Module):
    """x less its mean, over its spread, times a learned weight [size], plus a bias if there is one
    (Ba, Kiros and Hinton 2016)."""

    def __init__(self, size: int, eps: float, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(
        self, x: Tensor, residual: Tensor | None, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """Return (norm(x + residual), x + residual), both [T, size]; None counts as zeros."""
        if residual is None:
            return ctx.backend.layer_norm(x, self.weight, self.bias, self.eps), x
        return ctx.backend.add_layer_norm(x, residual, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Size and epsilon, for the module tree."""
        return f"{self.weight.shape[0]}, eps={self.eps}"
