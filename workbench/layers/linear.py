"""The linear layer that models use: `nn.Linear` whose weights start as uninitialised memory.

A checkpoint overwrites them anyway. Quantization and LoRA replace these modules from outside, so
nothing here knows of them; `DecoderLM.init_weights` fills a model that has no checkpoint.
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
        return ctx.backend.linear(x, self.weight, self.bias)
