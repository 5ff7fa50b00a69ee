"""A feed-forward part of several experts, of which a router chooses some for each token.

Tokens are taken expert by expert, each expert with its own only: sizes follow from what the router
says, so a pass reads it on the host and cannot be replayed from a graph or a tape. A token's result
depends on no other token: its experts are added up in their own order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers.linear import Linear
from workbench.layers.mlp import GatedMLP


class SparseMLP(nn.Module):
    """The sum of `experts_per_token` gated experts, weighted as the router's softmax has them.

    The weights of the chosen ones are made to add up to 1, as in Mixtral.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.router = Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(GatedMLP(config) for _ in range(config.num_experts))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map x [T, hidden] to [T, hidden]."""
        shares = self.router(x, ctx).float().softmax(-1)  # [T, experts]
        weights, chosen = shares.topk(self.experts_per_token, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        out, chosen_by_host = torch.zeros_like(x), chosen.cpu()
        for number, expert in enumerate(self.experts):
            tokens, rank = (chosen_by_host == number).nonzero(as_tuple=True)
            if not len(tokens):
                continue
            places = tokens.to(x.device)
            made = expert(x.index_select(0, places), ctx.at(tokens.tolist()))
            weighted = made.float() * weights[places, rank.to(x.device)].unsqueeze(1)
            out.index_add_(0, places, weighted.to(x.dtype))
        return out
