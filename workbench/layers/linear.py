"""The linear layer that models use: `nn.Linear` whose weights start as uninitialised memory.

A checkpoint overwrites them anyway; `DecoderLM.init_weights` fills a model that has none.
Quantization replaces these modules from outside. Adapters leave them as they are and come with the
batch, so that one model serves engines with different ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from workbench.batch import ForwardContext


class Linear(nn.Linear):
    """y = x W^T + b with W [out_features, in_features]; no costly random start."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are: they come from a checkpoint or from `init_weights`."""

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:  # type: ignore[override]
        """Map x [T, in] to [T, out]; what replaces this layer may need the batch's `ctx` too."""
        if ctx.lora is not None:
            return ctx.lora.linear(self, x, ctx.backend)
        return ctx.backend.linear(x, self.weight, self.bias)
