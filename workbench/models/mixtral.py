"""Mixtral: a Mistral whose feed-forward part is several experts, of which each token takes some.

Experts are modules of their own, by the names that checkpoints give them. transformers holds those
of a layer as one parameter, and so do adapters that PEFT makes with it: `fused_parameters` says
which of ours such a one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from workbench.config import ModelConfig
from workbench.errors import ConfigError
from workbench.models import hf as read
from workbench.models.llama import LlamaForCausalLM
from workbench.models.weights import WeightRule

_MOST = 64  # experts that a rule is written for
_MOE, _EXPERT = "model.layers.{layer}.block_sparse_moe", "layers.{layer}.mlp.experts"


class MixtralForCausalLM(LlamaForCausalLM):
    """Pre-norm decoder: embedding, layers of attention and sparse gated MLP, norm, head."""

    architectures: ClassVar[tuple[str, ...]] = ("MixtralForCausalLM",)
    replayable = False
    weight_rules: ClassVar[tuple[WeightRule, ...]] = (
        *(rule for rule in LlamaForCausalLM.weight_rules if ".mlp." not in rule.source),
        WeightRule(f"{_MOE}.gate.weight", "layers.{layer}.mlp.router.weight"),
        *(
            WeightRule(f"{_MOE}.experts.{expert}.{source}", f"{_EXPERT}.{expert}.{target}", part)
            for expert in range(_MOST)
            for source, target, part in (
                ("w1.weight", "gate_up_proj.weight", "gate"),
                ("w3.weight", "gate_up_proj.weight", "up"),
                ("w2.weight", "down_proj.weight", None),
            )
        ),
    )
    fused_parameters: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {
            "mlp.experts.gate_up_proj": (
                "block_sparse_moe.experts.{expert}.w1",
                "block_sparse_moe.experts.{expert}.w3",
            ),
            "mlp.experts.down_proj": ("block_sparse_moe.experts.{expert}.w2",),
            "mlp.gate.weight": ("block_sparse_moe.gate",),
        }
    )

    @property
    def activation_points(self) -> tuple[str, ...]:
        """All modules but the experts, which see only the tokens that are theirs."""
        return tuple(point for point in super().activation_points if ".mlp.experts." not in point)

    @classmethod
    def config_from_hf(cls, hf: Mapping[str, Any]) -> ModelConfig:
        """Return what a `config.json` states. Raises `ConfigError` for what cannot run."""
        experts = read.whole(hf, "num_local_experts", 8)
        chosen = read.whole(hf, "num_experts_per_tok", 2)
        if not chosen <= experts <= _MOST:
            problem = f"must be from num_experts_per_tok={chosen} to {_MOST}"
            fix = "Restore both from the model."
            raise ConfigError("config.json: num_local_experts", experts, problem, fix)
        config = super().config_from_hf(hf)
        return replace(config, num_experts=experts, experts_per_token=chosen)
