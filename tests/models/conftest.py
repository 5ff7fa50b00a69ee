"""Tiny random checkpoints of every family, written by transformers, and their transformers models.

Weights are large, biases and norms random: with transformers' own initialisation attention hardly
matters, and a wrong window or a lost bias would pass.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,  # greedy runs go on for as long as they are asked to
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}

# name -> (class prefix in transformers, what differs from SHAPE)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "llama-gelu-tanh": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-head-dim": ("Llama", {"head_dim": 24, "num_key_value_heads": 4}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral-window": ("Mistral", {"sliding_window": 8, "num_key_value_heads": 1}),
    "mistral-no-window": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 3, "sliding_window": 8, "head_dim": 32}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-max-window-layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen2-layer-types": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def make_hf(kind: str, **changes: Any) -> Any:
    """Return a transformers model of SHAPE with changes; its weights are random and large."""
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:  # a loud embedding would drown the layers, and a tied head repeat its input
                parameter.copy_((0.03 if "embed" in name else 0.15) * noise)
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a case of CASES, written once. Tests must not change it."""
    folders: dict[str, Path] = {}

    def folder_of(case: str) -> Path:
        if case not in folders:
            kind, changes = CASES[case]
            folders[case] = tmp_path_factory.mktemp(case)
            make_hf(kind, **changes).save_pretrained(folders[case], max_shard_size="80KB")
        return folders[case]

    return folder_of


@pytest.fixture
def reference() -> Callable[[Path], Any]:
    """Return a fresh transformers model of a folder, in float32.

    Fresh matters: with dynamic scaling, its frequencies remember the sequences it has seen.
    """

    def load(folder: Path) -> Any:
        auto = transformers.AutoModelForCausalLM
        return auto.from_pretrained(folder, dtype=torch.float32).eval()

    return load


@pytest.fixture
def copied(tmp_path: Path, checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return a copy of a case's folder that the test may damage."""

    def copy(case: str = "llama") -> Path:
        target = tmp_path / case
        target.mkdir()
        for path in checkpoint(case).iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        return target

    return copy
