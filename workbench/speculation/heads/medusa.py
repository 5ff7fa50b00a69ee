"""Medusa: K heads that each look one token further, all from one hidden state.

Head i is residual blocks x + SiLU(W x + b) and a matrix, and predicts token t + 2 + i from the
state of token t after the final norm. Source: FasterDecoding/Medusa (arXiv 2401.10774); `version`
2, where heads end in the target's own matrix, from LoRAX.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.layers import Linear
from workbench.models.base import DecoderLM
from workbench.models.weights import WeightRule
from workbench.speculation.heads.base import Head
from workbench.speculation.heads.target import FINAL
from workbench.speculation.heads.tree import Paths


class ResBlock(nn.Module):
    """x + SiLU(W x + b)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = Linear(size, size, bias=True)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map x [T, size] to [T, size]."""
        return x + F.silu(self.linear(x, ctx))


class MedusaHead(Head):
    """`num_heads` heads of `num_layers` blocks.

    shared_blocks: a head's blocks are one module, applied `num_layers` times. The authors' code
    builds them so, and writes the one module under every index. own_matrix: each head has a matrix
    of its own (version 1), or uses the target's (version 2). paths: the tree it drafts, if known.
    """

    kind: ClassVar[str] = "medusa"
    needs = (FINAL,)

    def __init__(
        self,
        target: DecoderLM,
        *,
        num_heads: int = 5,
        num_layers: int = 1,
        shared_blocks: bool = True,
        own_matrix: bool = True,
        paths: Paths | None = None,
    ) -> None:
        super().__init__(target)
        self.num_heads, self.num_layers, self.paths = num_heads, num_layers, paths
        self.shared_blocks = shared_blocks and num_layers > 1
        hidden, vocab = target.config.hidden_size, target.config.vocab_size
        self.blocks = nn.ModuleList(self._blocks(hidden) for _ in range(num_heads))
        matrices = (Linear(hidden, vocab, bias=False) for _ in range(num_heads))
        self.heads = nn.ModuleList(matrices if own_matrix else ())

    def _blocks(self, hidden: int) -> nn.ModuleList:
        if self.shared_blocks:
            return nn.ModuleList([ResBlock(hidden)] * self.num_layers)
        return nn.ModuleList(ResBlock(hidden) for _ in range(self.num_layers))

    def rules(self) -> list[WeightRule]:
        """Return the map from `{i}.{j}.linear` and `{i}.{num_layers}`.

        Of shared blocks only the first is a parameter of its own, so only its rule applies.
        """
        blocks = [
            WeightRule(f"{i}.{j}.linear.{kind}", f"blocks.{i}.{j}.linear.{kind}")
            for i in range(self.num_heads)
            for j in range(self.num_layers)
            for kind in ("weight", "bias")
        ]
        heads = [
            WeightRule(f"{i}.{self.num_layers}.weight", f"heads.{i}.weight")
            for i in range(self.num_heads)
        ]
        return blocks + heads

    @torch.no_grad()
    def init_weights(self, *, std: float = 0.02, seed: int = 0) -> None:
        """Start as the paper does: blocks that pass through, and copies of the target's head."""
        for parameter in self.blocks.parameters():
            parameter.zero_()
        for weight in self.heads.parameters():
            weight.copy_(self.target.model.head.weight)

    def forward(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        """Map states after the final norm [T, hidden] to logits [num_heads, T, vocab]."""
        logits = []
        for i, blocks in enumerate(self.blocks):
            assert isinstance(blocks, nn.ModuleList)
            x = hidden
            for block in blocks:
                x = block(x, ctx)
            if len(self.heads):
                logits.append(self.heads[i](x, ctx))
            else:
                logits.append(self.target.logits(x.to(self.target.model.dtype), ctx))
        return torch.stack(logits)
