"""A small model config and context for the layers' tests."""

from __future__ import annotations

import pytest

from workbench.config import ModelConfig


@pytest.fixture
def config() -> ModelConfig:
    """Two layers of hidden size 32, four query heads on two key/value heads of size 8."""
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        context=64,
    )
