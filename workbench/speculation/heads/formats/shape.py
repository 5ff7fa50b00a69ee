"""A head's own layers as `config.json` states them (Llama's keys), and back.

Called by the formats of the families that have decoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.config import ModelConfig, RopeScaling
from workbench.models import hf as read


def read_shape(hf: Mapping[str, Any], *, num_layers: int | None = None) -> ModelConfig:
    """Return the shape of the head's layers; `num_layers` overrides the config's.

    Raises `ConfigError` for a key that is missing or cannot run.
    """
    hidden, heads = read.whole(hf, "hidden_size"), read.whole(hf, "num_attention_heads")
    theta, scaling = read.rope(hf)
    bias = read.flag(hf, "attention_bias")
    context = read.context(hf, scaling) if hf.get("max_position_embeddings") else 2048
    return ModelConfig(
        architecture="draft head",
        vocab_size=read.whole(hf, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.whole(hf, "intermediate_size"),
        num_layers=num_layers or read.whole(hf, "num_hidden_layers", 1),
        num_heads=heads,
        num_kv_heads=read.whole(hf, "num_key_value_heads", heads),
        head_dim=read.whole(hf, "head_dim", hidden // heads),
        context=context,
        norm_eps=read.positive(hf, "rms_norm_eps", 1e-6),
        activation=read.activation(hf),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=read.flag(hf, "mlp_bias"),
    )


def write_shape(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of `config.json` that `read_shape` reads the same shape from."""
    assert config.qkv_bias == config.output_bias, "one key states both"
    return {
        "model_type": "llama",
        "hidden_act": next(n for n, kind in read.ACTIVATIONS.items() if kind == config.activation),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": _trained_context(config),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else _scaling(config.rope_scaling),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


def _trained_context(config: ModelConfig) -> int:
    scaling = config.rope_scaling
    if scaling is None or scaling.original_context is None or scaling.kind == "llama3":
        return config.context
    return scaling.original_context if scaling.kind in ("linear", "dynamic") else config.context


def _scaling(scaling: RopeScaling) -> dict[str, Any]:
    keys: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        keys["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        keys["low_freq_factor"] = scaling.low_freq_factor
        keys["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        names = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
        given = {name: getattr(scaling, name) for name in names}
        keys |= {name: value for name, value in given.items() if value is not None}
        keys["truncate"] = scaling.truncate
    return keys
