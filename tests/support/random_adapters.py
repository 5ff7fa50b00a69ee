"""LoRA adapters for tests that need no PEFT: random, and loud enough to change tokens."""

from __future__ import annotations

import torch

from workbench.lora import Adapter, LoRAConfig, LoRAPair, targets_of
from workbench.models import DecoderLM


def random_adapter(
    model: DecoderLM, seed: int, rank: int = 3, *, head: bool = False, embedding: bool = False
) -> Adapter:
    """Return an adapter of every linear layer, and of the head and the embedding if wanted."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        path: LoRAPair(
            0.2 * torch.randn(rank, target.num_read, generator=generator),
            0.2 * torch.randn(target.num_added, rank, generator=generator),
            0.7,
            of_embedding=target.is_embedding,
        )
        for path, target in targets_of(model).items()
        if (head or not target.is_head) and (embedding or not target.is_embedding)
    }
    modules = tuple(sorted({path.rpartition(".")[2] for path in pairs}))
    return Adapter(LoRAConfig(rank, 0.7 * rank, modules), pairs)
