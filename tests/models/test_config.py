"""Reading config.json: what it means, in both of transformers' styles, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.config import ModelConfig, RopeScaling
from workbench.errors import ConfigError
from workbench.models import LlamaForCausalLM
from workbench.models.registry import find_family

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def read(**changes: Any) -> ModelConfig:
    """Return the config that BASE with these changes states."""
    return LlamaForCausalLM.config_from_hf({**BASE, **changes})


MISTRAL = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2}
SLIDING = {"use_sliding_window": True, "sliding_window": 8}


def test_what_an_old_llama_config_leaves_out() -> None:
    config = read()
    assert (config.num_kv_heads, config.head_dim, config.context) == (4, 16, 128)
    assert (config.norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 10_000.0, None)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert not config.tied_head
    assert config.windows == ()


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 8}, ()),  # no key of Llama's
        ({**MISTRAL, "sliding_window": 8}, (8, 8, 8, 8)),
        (MISTRAL, (4096,) * 4),
        ({**MISTRAL, "sliding_window": None}, ()),
        ({**QWEN2, "sliding_window": 8}, ()),
        ({**QWEN2, **SLIDING, "max_window_layers": 0}, (8, 8, 8, 8)),
        ({**QWEN2, **SLIDING, "max_window_layers": 3}, (None, None, None, 8)),
        ({**QWEN2, **SLIDING}, ()),  # max_window_layers is 28 where nothing is said
        (
            {
                **QWEN2,
                **SLIDING,
                "max_window_layers": 0,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 8, None, 8),
        ),
    ],
)
def test_windows(changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read(**changes).windows == windows


def test_biases() -> None:
    def biases(**changes: Any) -> tuple[bool, bool, bool]:
        config = read(**changes)
        return config.qkv_bias, config.output_bias, config.mlp_bias

    assert biases() == (False, False, False)
    assert biases(attention_bias=True) == (True, True, False)
    assert biases(mlp_bias=True) == (False, False, True)
    assert biases(**QWEN2) == (True, False, False)
    assert biases(**MISTRAL, attention_bias=True) == (False, False, False)  # as in transformers


@pytest.mark.parametrize(("value", "ids"), [(None, ()), (5, (5,)), ([5, 7, 5], (5, 7))])
def test_end_tokens(value: Any, ids: tuple[int, ...]) -> None:
    assert read(eos_token_id=value).eos_token_ids == ids


@pytest.mark.parametrize(
    ("scaling", "expected", "context"),
    [
        ({"rope_type": "default"}, None, 128),
        (
            {"rope_type": "linear", "factor": 2},
            RopeScaling("linear", factor=2.0, original_context=128),
            256,
        ),
        (
            {"rope_type": "dynamic", "factor": 2.5},
            RopeScaling("dynamic", factor=2.5, original_context=128),
            320,
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            RopeScaling("yarn", factor=4.0, original_context=64),
            256,
        ),
        (  # without a factor, what the lengths make of it
            {"rope_type": "yarn", "original_max_position_embeddings": 32, "beta_fast": 16},
            RopeScaling("yarn", factor=4.0, original_context=32, beta_fast=16.0),
            128,
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            RopeScaling("llama3", factor=8.0, original_context=16),
            128,
        ),
    ],
)
def test_rope_scaling_in_both_styles(
    scaling: dict[str, Any], expected: RopeScaling | None, context: int
) -> None:
    new = read(rope_parameters={**scaling, "rope_theta": 5e5})
    old = read(rope_scaling=scaling, rope_theta=5e5)
    kind = scaling["rope_type"]
    rest = {key: value for key, value in scaling.items() if key != "rope_type"}
    oldest = read(rope_scaling={"type": kind, **rest}, rope_theta=5e5)
    assert new == old == oldest
    assert (new.rope_theta, new.rope_scaling, new.context) == (5e5, expected, context)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [1]}}, "rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 3.0}}, "alpha"),
        ({"rope_scaling": {"type": "default", "factor": 2.0}}, "factor"),
        ({"rope_scaling": ["linear"]}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}},
            "high_freq_factor",
        ),
        ({**QWEN2, **SLIDING, "layer_types": ["full_attention"] * 3}, "layer_types"),
        ({**QWEN2, **SLIDING, "layer_types": ["linear_attention"] * 4}, "layer_types"),
        ({**QWEN2, "layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({**MISTRAL, "layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window"),
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
    ],
)
def test_what_cannot_run_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert field in caught.value.field
    assert caught.value.fix


@pytest.mark.parametrize("stated", [None, [], ["Own"], "Own", [3]])
def test_families_are_found_by_name_only(stated: Any) -> None:
    with pytest.raises(ConfigError, match="LlamaForCausalLM"):
        find_family({"architectures": stated})
    assert find_family({"architectures": ["Own"]}, {"Own": LlamaForCausalLM}) is LlamaForCausalLM
