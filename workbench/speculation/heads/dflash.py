"""DFlash: a whole block of tokens drafted at once, by layers that look both ways.

The queries are [latest token, MASK, MASK, …] in the target's embedding. The text so far comes in as
keys and values alone: norm(fc(states)) goes through every layer's k_proj and v_proj. Source:
z-lab/dflash (arXiv 2602.06036).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from workbench.batch import Backend, ForwardContext
from workbench.config import ModelConfig
from workbench.layers import DecoderLayer, Linear, RMSNorm, RotaryEmbedding
from workbench.models.base import DecoderLM
from workbench.models.weights import WeightRule
from workbench.ops.paging import write
from workbench.speculation.heads.base import Head
from workbench.speculation.heads.cache import HeadCache
from workbench.speculation.heads.drive import DraftChain
from workbench.speculation.heads.normed_attention import NormedAttention
from workbench.speculation.heads.rules import layer_parts, layer_rules
from workbench.speculation.heads.target import stream_points


@dataclass(frozen=True, slots=True)
class DFlashBlock:
    """What a block is. size: tokens with the anchor, the latest one. mask_token_id: what stands for
    those to draft. target_layers: the layers of the target whose *output* is read.
    """

    size: int
    mask_token_id: int
    target_layers: tuple[int, ...]


def default_target_layers(num_target_layers: int, num_layers: int) -> tuple[int, ...]:
    """Return where DFlash looks if a config does not say: evenly from layer 1 to the third last."""
    if num_layers == 1:
        return (num_target_layers // 2,)
    span = num_target_layers - 4
    return tuple(round(1 + i * span / (num_layers - 1)) for i in range(num_layers))


class DFlashLayer(DecoderLayer):
    """A decoder layer with normed queries and keys."""

    attention: NormedAttention

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.attention = NormedAttention(config, layer)


class DFlashHead(Head):
    """`config.num_layers` layers over states at `block.target_layers`."""

    kind: ClassVar[str] = "dflash"
    copies = ("embed_tokens.weight", "lm_head.weight")

    def __init__(self, target: DecoderLM, config: ModelConfig, block: DFlashBlock) -> None:
        super().__init__(target)
        self.config, self.block = config, block
        inputs = [layer + 1 for layer in block.target_layers]  # the output of one is the next's
        self.needs = stream_points(inputs, target.config.num_layers)
        hidden, eps = config.hidden_size, config.norm_eps
        self.fc = Linear(len(self.needs) * target.config.hidden_size, hidden, bias=False)
        self.state_norm = RMSNorm(hidden, eps)
        self.rope = RotaryEmbedding(config)
        self.layers = nn.ModuleList(DFlashLayer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(hidden, eps)

    def rules(self) -> list[WeightRule]:
        """Return the map from the published names."""
        own = [
            WeightRule("fc.weight", "fc.weight"),
            WeightRule("hidden_norm.weight", "state_norm.weight"),
            WeightRule("norm.weight", "norm.weight"),
        ]
        for i in range(self.config.num_layers):
            own += layer_rules(f"layers.{i}", f"layers.{i}")
        return own

    def parts(self) -> dict[str, slice]:
        """Return the rows of q, k, v, gate and up."""
        return layer_parts(self.config)

    @torch.no_grad()
    def commit(
        self,
        cache: HeadCache,
        rows: Sequence[int],
        states: Tensor,
        counts: Sequence[int],
        backend: Backend,
    ) -> None:
        """Add `counts[i]` tokens' packed states [T, sum of widths] to row `rows[i]`.

        Slot i of a row is token i's here: no token of its own goes with a state.
        """
        ctx = cache.extend(rows, counts, backend)
        context, _ = self.state_norm(self.fc(states.to(self.dtype), ctx), None, ctx)
        rope = self.rope(ctx.positions)
        assert ctx.kv is not None
        assert ctx.slot_mapping is not None
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, DFlashLayer)
            q, _, k, v = layer.attention.project(context, ctx)
            write(ctx.kv[i], ctx.slot_mapping, ctx.backend.rope(q, k, *rope)[1], v, None)
        cache.commit(rows, counts)

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """Map packed blocks [T] to outputs [T, hidden] after the final norm."""
        rope = self.rope(ctx.positions)
        x: Tensor = self.target.embed(token_ids).to(self.dtype)
        residual: Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual, rope, ctx)
        out: Tensor = self.norm(x, residual, ctx)[0]
        return out

    @torch.no_grad()
    def draft(
        self, cache: HeadCache, rows: Sequence[int], token_ids: Tensor, backend: Backend
    ) -> DraftChain:
        """Return the `block.size` - 1 tokens drafted behind the latest ones [R]."""
        size = self.block.size
        blocks = torch.full((len(rows), size), self.block.mask_token_id, device=token_ids.device)
        blocks[:, 0] = token_ids
        all_ways = torch.ones(len(rows), size, size, dtype=torch.bool)
        ctx = cache.branch(rows, all_ways, torch.arange(1, size + 1), backend)
        out = self(blocks.flatten(), ctx).view(len(rows), size, -1)[:, 1:]
        logits = self.target.logits(out.flatten(0, 1).to(self.target.model.dtype), ctx)
        logits = logits.view(len(rows), size - 1, -1)
        return DraftChain(logits.argmax(-1), logits)
