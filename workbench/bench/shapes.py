"""Model shapes with random weights, for sizes that no shipped checkpoint has.

`S` and `M` are Llama-like models of the sizes that the CPU figures of other engines are known for.
Random weights cost what trained ones cost, but their greedy tokens repeat: rates mean something,
texts and draft acceptance do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True, slots=True)
class Shape:
    """What it is, and the keywords of transformers' `LlamaConfig`."""

    description: str
    settings: dict[str, Any]


SHAPES = {
    "S": Shape(
        "14 M parameters, 28 MB in bfloat16, tied head",
        {
            "vocab_size": 4096,
            "hidden_size": 512,
            "intermediate_size": 864,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "M": Shape(
        "125 M parameters, of which a step reads 100 M: 200 MB in bfloat16",
        {
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
}


def write_random_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the shape of that name to `folder` with random bfloat16 weights; return the folder."""
    config = LlamaConfig(
        **SHAPES[name].settings,
        head_dim=64,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
