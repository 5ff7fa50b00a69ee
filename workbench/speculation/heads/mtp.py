"""MTP: the extra layer that DeepSeek-V3 and Qwen3-Next bring along to predict one token further.

A matrix over [norm(embedding of token i + 1) | norm(state of token i)], then a decoder block, a
norm and the target's head. To draft more than one token it goes on from its own output. Source:
DeepSeek-V3's report (arXiv 2412.19437), and vLLM's reading of both layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.layers import DecoderLayer, Linear, RMSNorm, RotaryEmbedding
from workbench.models.base import DecoderLM
from workbench.models.weights import WeightRule
from workbench.speculation.heads.base import SequentialHead
from workbench.speculation.heads.normed_attention import NormedAttention
from workbench.speculation.heads.rules import layer_parts, layer_rules
from workbench.speculation.heads.target import FINAL


@dataclass(frozen=True, slots=True)
class MTPLayout:
    """How a family publishes and runs its extra layer; `{layer}` is the target's layer count.

    block: prefix of the decoder block. names: of the parts around it. copies: tensors that repeat
    the target's. zero_first: position 0 has no embedding. feeds_normed: the output goes on after
    the final norm. centred_norms: norms are stored as weight - 1.
    """

    block: str
    names: dict[str, str]
    copies: tuple[str, ...] = ()
    zero_first: bool = False
    feeds_normed: bool = False
    centred_norms: bool = False


LAYOUTS = MappingProxyType(
    {
        "deepseek": MTPLayout(
            block="model.layers.{layer}",
            names={
                "token_norm": "model.layers.{layer}.enorm",
                "state_norm": "model.layers.{layer}.hnorm",
                "fc": "model.layers.{layer}.eh_proj",
                "norm": "model.layers.{layer}.shared_head.norm",
            },
            copies=(
                "model.layers.{layer}.embed_tokens.weight",
                "model.layers.{layer}.shared_head.head.weight",
            ),
            zero_first=True,
        ),
        "qwen3_next": MTPLayout(
            block="mtp.layers.0",
            names={
                "token_norm": "mtp.pre_fc_norm_embedding",
                "state_norm": "mtp.pre_fc_norm_hidden",
                "fc": "mtp.fc",
                "norm": "mtp.norm",
            },
            feeds_normed=True,
            centred_norms=True,
        ),
        "speculators": MTPLayout(
            block="mtp_layers.0",
            names={
                "token_norm": "mtp_layers.0.token_layernorm",
                "state_norm": "mtp_layers.0.hidden_layernorm",
                "fc": "mtp_layers.0.input_proj",
                "norm": "mtp_layers.0.final_layernorm",
            },
            copies=("embed_tokens.weight", "lm_head.weight"),
            feeds_normed=True,
        ),
    }
)


class MTPHead(SequentialHead):
    """One extra layer in one of `LAYOUTS`.

    qk_norm, gated, rotary_dim: what its attention has beside a Llama layer's (see
    `NormedAttention`).
    """

    kind: ClassVar[str] = "mtp"
    needs = (FINAL,)

    def __init__(
        self,
        target: DecoderLM,
        config: ModelConfig,
        layout: str = "deepseek",
        *,
        qk_norm: bool = False,
        gated: bool = False,
        rotary_dim: int | None = None,
    ) -> None:
        super().__init__(target)
        self.config, self.layout_name, self.layout = config, layout, LAYOUTS[layout]
        self.copies = tuple(map(self._published, self.layout.copies))
        hidden, eps = config.hidden_size, config.norm_eps
        self.token_norm, self.state_norm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.fc = Linear(2 * hidden, hidden, bias=False)
        self.rope = RotaryEmbedding(config) if rotary_dim is None else _partial(config, rotary_dim)
        self.block = DecoderLayer(config, 0)
        self.gated, self.rotary_dim = gated, rotary_dim
        if qk_norm:
            attention = NormedAttention(config, 0, gated=gated, rotary_dim=rotary_dim)
            self.block.attention = attention
        self.norm = RMSNorm(hidden, eps)

    def _published(self, name: str) -> str:
        return name.format(layer=self.target.config.num_layers)

    def rules(self) -> list[WeightRule]:
        """Return the map from the layout's names."""
        own = [
            WeightRule(f"{self._published(theirs)}.weight", f"{ours}.weight")
            for ours, theirs in self.layout.names.items()
        ]
        return own + layer_rules(self._published(self.layout.block), "block")

    def decode(self, name: str, tensor: Tensor) -> Tensor:
        """Return weight = stored + 1 of centred norms."""
        return tensor.float() + 1 if self._centred(name) else tensor

    def encode(self, name: str, tensor: Tensor) -> Tensor:
        """Return stored = weight - 1 of centred norms."""
        return tensor - 1 if self._centred(name) else tensor

    def _centred(self, name: str) -> bool:
        return self.layout.centred_norms and "norm" in name

    def parts(self) -> dict[str, slice]:
        """Return the rows of q, k, v, gate and up."""
        return layer_parts(self.config, gated=self.gated)

    def forward(self, token_ids: Tensor, features: Tensor, ctx: ForwardContext) -> Tensor:
        """Map token ids [T] and the states before them [T, hidden] to outputs [T, hidden]."""
        embedded = self.target.embed(token_ids).to(features.dtype)
        if self.layout.zero_first:
            embedded = embedded * (ctx.positions != 0).unsqueeze(1)
        token, _ = self.token_norm(embedded, None, ctx)
        state, _ = self.state_norm(features, None, ctx)
        x = self.fc(torch.cat((token, state), dim=-1), ctx)
        x, residual = self.block(x, None, self.rope(ctx.positions), ctx)
        out: Tensor = x + residual
        return out

    def carry(self, out: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the output, normed where the layout says so."""
        return self.norm(out, None, ctx)[0] if self.layout.feeds_normed else out

    def logits(self, out: Tensor, ctx: ForwardContext) -> Tensor:
        """Return what the target's head makes of the normed outputs: [T, vocab]."""
        normed, _ = self.norm(out, None, ctx)
        return self.target.logits(normed.to(self.target.model.dtype), ctx)


def _partial(config: ModelConfig, rotary_dim: int) -> RotaryEmbedding:
    return RotaryEmbedding(replace(config, head_dim=rotary_dim))
