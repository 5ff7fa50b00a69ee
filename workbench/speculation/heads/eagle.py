"""EAGLE-1 and EAGLE-2: one Llama layer that predicts the target's next feature.

The two share weights and differ in the tree alone (`dynamic_tree`). The layer's input is
fc([embedding of token i + 1 | feature of token i]); it has no norm in front of its attention, and
its output goes to the target's own head without a norm. Source: SafeAILab/EAGLE,
`eagle/model/cnets1.py` (arXiv 2401.15077, 2406.16858).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers import DecoderLayer, Embedding, Linear, RotaryEmbedding
from workbench.models.base import DecoderLM
from workbench.models.weights import WeightRule
from workbench.speculation.heads.base import SequentialHead
from workbench.speculation.heads.rules import layer_parts, layer_rules
from workbench.speculation.heads.target import FINAL


class FirstLayer(DecoderLayer):
    """A decoder layer without a norm in front of its attention: the stream goes in as it is."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.attention_norm

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        rope: tuple[Tensor, Tensor],
        ctx: ForwardContext,
    ) -> tuple[Tensor, Tensor]:
        """Map x [T, hidden] to (x, residual); there is no residual before the first layer."""
        assert residual is None, "the first layer"
        attended = self.attention(x, rope, ctx)
        attended, residual = self.mlp_norm(attended, x, ctx)
        return self.mlp(attended, ctx), residual


class EagleHead(SequentialHead):
    """EAGLE-1/2. `fc_bias` is published as config key `bias`, True where it is absent.

    own_embedding: whether it brings a table of its own instead of the target's.
    """

    kind: ClassVar[str] = "eagle"
    copies = ("embed_tokens.weight",)
    needs = (FINAL,)

    def __init__(
        self,
        target: DecoderLM,
        config: ModelConfig,
        *,
        fc_bias: bool = True,
        own_embedding: bool = False,
    ) -> None:
        super().__init__(target)
        self.config, self.fc_bias = config, fc_bias
        hidden = config.hidden_size
        self.embedding = Embedding(config.vocab_size, hidden) if own_embedding else None
        self.fc = Linear(2 * hidden, hidden, bias=fc_bias)
        self.rope = RotaryEmbedding(config)
        kinds = [FirstLayer] + [DecoderLayer] * (config.num_layers - 1)
        self.layers = torch.nn.ModuleList(kind(config, i) for i, kind in enumerate(kinds))

    def rules(self) -> list[WeightRule]:
        """Return the map from `fc` and `layers.{i}` as published."""
        layers = [
            rule
            for i in range(self.config.num_layers)
            for rule in layer_rules(f"layers.{i}", f"layers.{i}")
        ]
        own = [
            WeightRule("fc.weight", "fc.weight"),
            WeightRule("fc.bias", "fc.bias"),
            WeightRule("embed_tokens.weight", "embedding.weight"),
        ]
        return own + layers

    def parts(self) -> dict[str, slice]:
        """Return the rows of q, k, v, gate and up."""
        return layer_parts(self.config)

    def forward(self, token_ids: Tensor, features: Tensor, ctx: ForwardContext) -> Tensor:
        """Map token ids [T] and the features before them [T, hidden] to features [T, hidden]."""
        embed = self.target.embed if self.embedding is None else self.embedding
        embedded = embed(token_ids).to(features.dtype)
        x = self.fc(torch.cat((embedded, features), dim=-1), ctx)
        rope = self.rope(ctx.positions)
        residual: Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual, rope, ctx)
        assert residual is not None, "at least one layer"
        out: Tensor = x + residual
        return out

    def logits(self, out: Tensor, ctx: ForwardContext) -> Tensor:
        """Return what the target's head makes of features [T, hidden]: [T, vocab]."""
        return self.target.logits(out.to(self.target.model.dtype), ctx)
