"""EAGLE-3: one layer over three of the target's inner states and its own last output.

g = fc([low | middle | high]); the first layer attends over [norm(embedding) | norm(g)], which is
2H wide, and drafts from a vocabulary and head of its own. By itself it goes on from its output
*before* the final norm. Source: SafeAILab/EAGLE `eagle/model/cnets.py` (arXiv 2503.01840); flags
from vLLM's speculators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers import Attention, DecoderLayer, Embedding, Linear, RMSNorm, RotaryEmbedding
from workbench.models.base import DecoderLM
from workbench.models.weights import WeightRule
from workbench.speculation.heads.base import SequentialHead
from workbench.speculation.heads.rules import layer_parts, layer_rules
from workbench.speculation.heads.target import stream_points
from workbench.speculation.heads.vocabulary import DraftVocabulary


def default_aux_layers(num_layers: int) -> tuple[int, ...]:
    """Return where EAGLE-3 looks if a config does not say: the *inputs* of these layers."""
    return (2, num_layers // 2, num_layers - 3)


@dataclass(frozen=True, slots=True)
class Eagle3Flags:
    """What published EAGLE-3 heads differ in.

    aux_layers: layers of the target whose input is read. norm_before_residual: the residual is the
    normed state. norm_output: the *normed* output is fed back ("EAGLE 3.1"). norm_before_fc: one
    norm over all states (key `input_norm`). fc_norm: one norm for each (keys `fc_norm.{i}`).
    """

    aux_layers: tuple[int, ...]
    norm_before_residual: bool = False
    norm_output: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False


class WideAttention(Attention):
    """Attention whose q, k and v read rows of 2H."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        rows, bias = self.qkv_proj.out_features, config.qkv_bias
        self.qkv_proj = Linear(2 * config.hidden_size, rows, bias=bias)


class FusionLayer(DecoderLayer):
    """EAGLE-3's first layer: attention over [norm(embedding) | norm(state)]."""

    def __init__(self, config: ModelConfig, layer: int, *, norm_before_residual: bool) -> None:
        super().__init__(config, layer)
        self.attention = WideAttention(config, layer)
        self.state_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.norm_before_residual = norm_before_residual

    def fuse(
        self, embedded: Tensor, state: Tensor, rope: tuple[Tensor, Tensor], ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """Map embeddings and states [T, hidden] to (x, residual), whose sum is the output."""
        token, _ = self.attention_norm(embedded, None, ctx)
        normed, _ = self.state_norm(state, None, ctx)
        attended = self.attention(torch.cat((token, normed), dim=-1), rope, ctx)
        residual = normed if self.norm_before_residual else state
        attended, residual = self.mlp_norm(attended, residual, ctx)
        return self.mlp(attended, ctx), residual


class Eagle3Head(SequentialHead):
    """EAGLE-3 over a target of `target_hidden` wide states; `vocabulary` None: the target's own."""

    kind: ClassVar[str] = "eagle3"
    copies = ("embed_tokens.weight",)

    def __init__(
        self,
        target: DecoderLM,
        config: ModelConfig,
        flags: Eagle3Flags,
        *,
        vocabulary: DraftVocabulary | None = None,
        own_embedding: bool = False,
    ) -> None:
        super().__init__(target)
        self.config, self.flags, self.vocabulary = config, flags, vocabulary
        self.needs = stream_points(flags.aux_layers, target.config.num_layers)
        hidden, eps = config.hidden_size, config.norm_eps
        wide, each = len(self.needs) * target.config.hidden_size, target.config.hidden_size
        self.embedding = Embedding(config.vocab_size, hidden) if own_embedding else None
        self.states_norm = RMSNorm(wide, eps) if flags.norm_before_fc else None
        norms = [RMSNorm(each, eps) for _ in self.needs] if flags.fc_norm else []
        self.state_norms = nn.ModuleList(norms)
        self.fc = Linear(wide, hidden, bias=False)
        self.rope = RotaryEmbedding(config)
        first = FusionLayer(config, 0, norm_before_residual=flags.norm_before_residual)
        rest = [DecoderLayer(config, i) for i in range(1, config.num_layers)]
        self.layers = nn.ModuleList([first, *rest])
        self.norm = RMSNorm(hidden, eps)
        size = config.vocab_size if vocabulary is None else len(vocabulary.d2t)
        self.head = Linear(hidden, size, bias=False)

    def rules(self) -> list[WeightRule]:
        """Return the map from the raw layout: `midlayer` is the first layer."""
        own = {
            "fc.weight": "fc.weight",
            "midlayer.hidden_norm.weight": "layers.0.state_norm.weight",
            "norm.weight": "norm.weight",
            "lm_head.weight": "head.weight",
            "embed_tokens.weight": "embedding.weight",
            "input_norm.weight": "states_norm.weight",
            **{f"fc_norm.{i}.weight": f"state_norms.{i}.weight" for i in range(len(self.needs))},
        }
        layers = layer_rules("midlayer", "layers.0")
        for i in range(1, self.config.num_layers):
            layers += layer_rules(f"layers.{i}", f"layers.{i}")
        return [WeightRule(*names) for names in own.items()] + layers

    def parts(self) -> dict[str, slice]:
        """Return the rows of q, k, v, gate and up."""
        return layer_parts(self.config)

    def features(self, states: Tensor, ctx: ForwardContext) -> Tensor:
        """Map the target's states [T, 3 * target hidden] to g [T, hidden]."""
        if self.states_norm is not None:
            states, _ = self.states_norm(states, None, ctx)
        if len(self.state_norms):
            chunks = states.chunk(len(self.state_norms), dim=-1)
            pairs = zip(self.state_norms, chunks, strict=True)
            states = torch.cat([norm(chunk, None, ctx)[0] for norm, chunk in pairs], dim=-1)
        out: Tensor = self.fc(states, ctx)
        return out

    def forward(self, token_ids: Tensor, features: Tensor, ctx: ForwardContext) -> Tensor:
        """Map token ids [T] and states g, or own outputs, [T, hidden] to outputs [T, hidden]."""
        embed = self.target.embed if self.embedding is None else self.embedding
        rope = self.rope(ctx.positions)
        first = self.layers[0]
        assert isinstance(first, FusionLayer)
        x, residual = first.fuse(embed(token_ids).to(features.dtype), features, rope, ctx)
        for layer in self.layers[1:]:
            x, residual = layer(x, residual, rope, ctx)
        return x + residual

    def carry(self, out: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the output itself, or its norm where `norm_output` says so."""
        return self.norm(out, None, ctx)[0] if self.flags.norm_output else out

    def logits(self, out: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the head's own logits [T, draft vocabulary] of outputs [T, hidden]."""
        normed, _ = self.norm(out, None, ctx)
        logits: Tensor = self.head(normed, ctx)
        return logits

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Map draft ids to the target's."""
        return draft_ids if self.vocabulary is None else self.vocabulary.target_ids(draft_ids)
