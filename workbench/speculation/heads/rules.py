"""Weight rules that several head families share: a Llama decoder layer under a published prefix.

Families with decoder layers of their own use these in `rules` and `parts`.
"""

from __future__ import annotations

from workbench.config import ModelConfig
from workbench.models.weights import WeightRule

_LAYER = (
    ("self_attn.q_proj", "attention.qkv_proj", "q"),
    ("self_attn.k_proj", "attention.qkv_proj", "k"),
    ("self_attn.v_proj", "attention.qkv_proj", "v"),
    ("self_attn.o_proj", "attention.o_proj", None),
    ("mlp.gate_proj", "mlp.gate_up_proj", "gate"),
    ("mlp.up_proj", "mlp.gate_up_proj", "up"),
    ("mlp.down_proj", "mlp.down_proj", None),
)
_NORMS = (
    ("input_layernorm.weight", "attention_norm.weight"),
    ("post_attention_layernorm.weight", "mlp_norm.weight"),
    ("self_attn.q_norm.weight", "attention.q_norm.weight"),
    ("self_attn.k_norm.weight", "attention.k_norm.weight"),
)


def layer_rules(source: str, target: str) -> list[WeightRule]:
    """Return the rules of a decoder layer, published as `source.…` and ours as `target.…`.

    A rule whose target is no parameter (a bias, a norm that this layer lacks) does not apply.
    """
    rules = [
        WeightRule(f"{source}.{theirs}.{kind}", f"{target}.{ours}.{kind}", part)
        for theirs, ours, part in _LAYER
        for kind in ("weight", "bias")
    ]
    return rules + [WeightRule(f"{source}.{t}", f"{target}.{o}") for t, o in _NORMS]


def layer_parts(config: ModelConfig, *, gated: bool = False) -> dict[str, slice]:
    """Return the rows of q, k, v and of gate, up in a layer's fused matrices.

    gated: q has as many rows again, for an output gate.
    """
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    q_rows, inner = q_rows * (2 if gated else 1), config.intermediate_size
    return {
        "q": slice(0, q_rows),
        "k": slice(q_rows, q_rows + kv_rows),
        "v": slice(q_rows + kv_rows, q_rows + 2 * kv_rows),
        "gate": slice(0, inner),
        "up": slice(inner, 2 * inner),
    }
