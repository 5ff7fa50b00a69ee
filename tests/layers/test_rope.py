"""Rotary frequencies against transformers' own functions, at the sizes of real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workbench.config import ModelConfig
from workbench.layers import RotaryEmbedding
from workbench.models import LlamaForCausalLM

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# name -> (rope parameters, max_position_embeddings)
REAL: dict[str, tuple[dict[str, Any], int]] = {
    "llama-2": ({"rope_type": "default", "rope_theta": 1e4}, 4096),
    "llama-3.1": ({**LLAMA3, "rope_theta": 5e5}, 131072),
    "llama-3.2-1b": ({**LLAMA3, "factor": 32.0, "rope_theta": 5e5}, 131072),
    "deepseek-coder": ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}, 16384),
    "dynamic": ({"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}, 2048),
    "qwen2-yarn": ({**YARN, "rope_theta": 1e6}, 32768),
    "yarn-attention-factor": ({**YARN, "attention_factor": 1.5, "rope_theta": 1e4}, 131072),
    "yarn-mscale": ({**YARN, "mscale": 0.8, "mscale_all_dim": 1.3, "rope_theta": 1e4}, 131072),
    "yarn-one-mscale": ({**YARN, "mscale": 0.8, "rope_theta": 1e4}, 131072),
    "yarn-betas": ({**YARN, "beta_fast": 8, "beta_slow": 2, "rope_theta": 1e4}, 131072),
    "yarn-smooth": ({**YARN, "truncate": False, "rope_theta": 1e4}, 131072),
    "yarn-no-factor": ({**YARN, "factor": None, "rope_theta": 1e4}, 131072),
}


def both(name: str) -> tuple[LlamaRotaryEmbedding, RotaryEmbedding]:
    """Return transformers' module and ours for one of REAL, heads of 128."""
    parameters, context = REAL[name]
    shape = {
        "vocab_size": 10,
        "hidden_size": 512,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
    }
    ours = LlamaForCausalLM.config_from_hf(
        {**shape, "architectures": ["LlamaForCausalLM"], "rope_parameters": dict(parameters)}
    )
    theirs = LlamaConfig(**shape, rope_parameters=dict(parameters))
    return LlamaRotaryEmbedding(theirs), RotaryEmbedding(ours)


@pytest.mark.parametrize("name", REAL)
def test_frequencies(name: str) -> None:
    theirs, ours = both(name)
    torch.testing.assert_close(ours.inv_freq, theirs.inv_freq, rtol=1e-6, atol=0)
    assert ours.amplitude == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in REAL if name != "dynamic"])
def test_angles(name: str) -> None:
    theirs, ours = both(name)
    positions = torch.tensor([0, 1, 17, 4095, 12345])
    expected = theirs(torch.zeros(1), positions[None])
    for actual, wanted in zip(ours(positions), expected, strict=True):
        # A frequency's last bit is worth 1e-7 of the angle, so up to 1e-3 rad at position 12345.
        torch.testing.assert_close(actual, wanted[0, :, :64], rtol=0, atol=2e-3)
        torch.testing.assert_close(actual[:3], wanted[0, :3, :64], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("length", [5, 2048, 2049, 6000])
def test_a_prompt_under_dynamic_scaling(length: int) -> None:
    theirs, ours = both("dynamic")
    positions = torch.arange(length)
    wanted = theirs(torch.zeros(1), positions[None])[1][0, :, :64]
    _, actual = ours(positions, torch.full((length,), length))
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-3)


def test_tokens_after_a_prompt_under_dynamic_scaling() -> None:
    """Each is rotated for the length it makes, whatever the batch holds beside it."""
    theirs, ours = both("dynamic")
    first = 3000
    theirs(torch.zeros(1), torch.arange(first)[None])
    wanted = [theirs(torch.zeros(1), torch.tensor([[p]]))[1][0, 0, :64] for p in range(first, 3010)]
    positions = torch.cat([torch.arange(first, 3010), torch.tensor([3, 9000])])
    _, actual = ours(positions)
    torch.testing.assert_close(actual[:10], torch.stack(wanted), rtol=0, atol=1e-3)
    prompt_wise = ours(positions[:10], torch.full((10,), 3010))[1]
    assert not torch.allclose(actual[:9], prompt_wise[:9], atol=1e-3), "lengths make a difference"


def test_frequencies_survive_the_meta_device(config: ModelConfig) -> None:
    with torch.device("meta"):
        rope = RotaryEmbedding(config)
    assert rope.inv_freq.device.type == "cpu"
    cos, sin = rope(torch.arange(5))
    assert cos.shape == sin.shape == (5, 4)
    assert cos.dtype == torch.float32
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(5, 4))
    assert not rope.state_dict()
