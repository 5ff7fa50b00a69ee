"""Hydra: Medusa's heads made sequential, each looking at the tokens drafted before it.

Head i sees [state | embeddings of x1 … x(i+1)], where x1 is the latest token: it is grounded. The
prefix variant ("Hydra++") runs one Llama layer with its own keys and values over the states first.
Source: zankner/Hydra (arXiv 2402.05109). Weights sit at the odd places of each Sequential, since
dropout takes the even ones.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.batch import Backend, ForwardContext
from workbench.config import ModelConfig
from workbench.layers import DecoderLayer, Linear, RMSNorm, RotaryEmbedding
from workbench.models.base import DecoderLM
from workbench.models.weights import WeightRule
from workbench.speculation.heads.attention import bare_context
from workbench.speculation.heads.base import Head
from workbench.speculation.heads.rules import layer_parts, layer_rules
from workbench.speculation.heads.target import FINAL, stream_point
from workbench.speculation.heads.tree import DraftTree, StaticTree


class GroundedBlock(nn.Module):
    """R x + SiLU(W x + b) from `width` to `size`; R is a matrix with bias, or nothing if equal."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.linear = Linear(width, size, bias=True)
        self.residual = None if width == size else Linear(width, size, bias=True)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map x [T, width] to [T, size]."""
        kept = x if self.residual is None else self.residual(x, ctx)
        return kept + F.silu(self.linear(x, ctx))


class PrefixLayer(nn.Module):
    """One Llama layer and its final norm over the target's states, with keys of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rope = RotaryEmbedding(config)
        self.layer = DecoderLayer(config, 0)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, states: Tensor, ctx: ForwardContext) -> Tensor:
        """Map packed states [T, hidden] to [T, hidden]."""
        x, residual = self.layer(states, None, self.rope(ctx.positions), ctx)
        out: Tensor = self.norm(x, residual, ctx)[0]
        return out


class HydraHead(Head):
    """`num_heads` heads of `num_layers` blocks each; the blocks after the first are one module.

    prefix: the shape of the prefix layer (arch `prefix-mlp`), None for arch `mlp`. grounded False:
    heads see the state alone. state_offset: how many layers before the end the states are taken; 0
    is after the final norm.
    """

    kind: ClassVar[str] = "hydra"
    copies = ("input_embed_fn.weight", "prefix_embeding_layer.embed_tokens.weight")

    def __init__(
        self,
        target: DecoderLM,
        *,
        num_heads: int = 4,
        num_layers: int = 1,
        grounded: bool = True,
        prefix: ModelConfig | None = None,
        state_offset: int = 0,
    ) -> None:
        super().__init__(target)
        self.num_heads, self.num_layers, self.grounded = num_heads, num_layers, grounded
        self.prefix_config, self.state_offset = prefix, state_offset
        layers = target.config.num_layers
        self.needs = (stream_point(layers - state_offset, layers) if state_offset else FINAL,)
        hidden, vocab = target.config.hidden_size, target.config.vocab_size
        self.prefix_layer = None if prefix is None else PrefixLayer(prefix)
        self.mlp = nn.ModuleList(self._blocks(i, hidden) for i in range(num_heads))
        self.heads = nn.ModuleList(Linear(hidden, vocab, bias=True) for _ in range(num_heads))

    def _blocks(self, head: int, hidden: int) -> nn.ModuleList:
        if not self.grounded:
            return nn.ModuleList([GroundedBlock(hidden, hidden)] * self.num_layers)
        rest = [GroundedBlock(hidden, hidden)] * (self.num_layers - 1)
        return nn.ModuleList([GroundedBlock((head + 2) * hidden, hidden), *rest])

    def rules(self) -> list[WeightRule]:
        """Return the map from `hydra_mlp`, `hydra_lm_head` and `prefix_embeding_layer` (sic)."""
        names = [
            (f"hydra_mlp.{i}.{2 * j + 1}.{theirs}", f"mlp.{i}.{j}.{ours}")
            for i in range(self.num_heads)
            for j in range(self.num_layers)
            for theirs, ours in (("linear", "linear"), ("res_connection", "residual"))
        ]
        names += [(f"hydra_lm_head.{i}.1", f"heads.{i}") for i in range(self.num_heads)]
        rules = [
            WeightRule(f"{theirs}.{kind}", f"{ours}.{kind}")
            for theirs, ours in names
            for kind in ("weight", "bias")
        ]
        prefix = "prefix_embeding_layer"
        rules += layer_rules(f"{prefix}.layers.0", "prefix_layer.layer")
        return [*rules, WeightRule(f"{prefix}.norm.weight", "prefix_layer.norm.weight")]

    def parts(self) -> dict[str, slice]:
        """Return the rows of q, k, v, gate and up of the prefix layer."""
        return {} if self.prefix_config is None else layer_parts(self.prefix_config)

    def prefix(self, states: Tensor, ctx: ForwardContext) -> Tensor:
        """Map the target's packed states [T, hidden] to what the heads read."""
        return states if self.prefix_layer is None else self.prefix_layer(states, ctx)

    def logits(self, head: int, seen: Tensor, ctx: ForwardContext) -> Tensor:
        """Return head `head`'s logits [T, vocab] of [prefix | x1 | … | x(head+1)] [T, width]."""
        x, blocks = seen, self.mlp[head]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(x, ctx)
        logits: Tensor = self.heads[head](x, ctx)
        return logits

    @torch.no_grad()
    def draft(
        self, prefix: Tensor, token_ids: Tensor, tree: StaticTree, backend: Backend
    ) -> DraftTree:
        """Return the static tree behind the latest tokens [R], whose states' prefix is [R, hidden].

        The states are those of the token *before* the latest: the latest has none yet.
        """
        ctx = bare_context(backend)
        parents, depths = tree.parents.tolist(), tree.depths.tolist()
        paths = {-1: self._grown(prefix, token_ids)}  # what the head of the next depth reads
        drafted: dict[int, Tensor] = {}
        scores: dict[int, Tensor] = {}
        for depth in range(1, max(depths) + 1):
            nodes = [i for i, d in enumerate(depths) if d == depth]
            before = list(dict.fromkeys(parents[i] for i in nodes))
            seen = torch.stack([paths[p] for p in before], 1)  # [R, parents, width]
            logits = self.logits(depth - 1, seen.flatten(0, 1), ctx).float().log_softmax(-1)
            ranks = int(tree.ranks[nodes].max()) + 1
            best = logits.view(*seen.shape[:2], -1).topk(ranks, dim=-1)
            for node in nodes:
                parent, rank = before.index(parents[node]), int(tree.ranks[node])
                drafted[node] = best.indices[:, parent, rank]
                own = best.values[:, parent, rank]
                scores[node] = own + scores[parents[node]] if depth > 1 else own
                paths[node] = self._grown(paths[parents[node]], drafted[node])
        order = range(len(parents))
        return DraftTree(
            torch.stack([drafted[i] for i in order], 1),
            tree.parents,
            torch.stack([scores[i] for i in order], 1),
        )

    def _grown(self, seen: Tensor, token_ids: Tensor) -> Tensor:
        if not self.grounded:
            return seen
        return torch.cat((seen, self.target.embed(token_ids).to(seen.dtype)), dim=-1)
