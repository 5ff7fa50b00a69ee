"""LoRA adapters for tests that need no PEFT: random, and loud enough to change tokens."""

from __future__ import annotations

import torch

from workbench.lora import Adapter, LoRAConfig, LoRAPair, Target, targets_of
from workbench.models import DecoderLM


def random_adapter(
    model: DecoderLM,
    seed: int,
    rank: int = 3,
    *,
    head: bool = False,
    embedding: bool = False,
    dora: bool = False,
) -> Adapter:
    """Return an adapter of every linear layer, and of the head and the embedding if wanted.

    dora: the rows that it gives are up to half as long again as those of the model."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        path: LoRAPair(
            0.2 * torch.randn(rank, target.num_read, generator=generator),
            0.2 * torch.randn(target.num_added, rank, generator=generator),
            0.7,
            of_embedding=target.is_embedding,
            magnitude=_longer(model, target, generator) if dora else None,
        )
        for path, target in targets_of(model).items()
        if (head or not target.is_head) and (embedding or not target.is_embedding)
    }
    modules = tuple(sorted({path.rpartition(".")[2] for path in pairs}))
    return Adapter(LoRAConfig(rank, 0.7 * rank, modules, use_dora=dora), pairs)


def _longer(model: DecoderLM, target: Target, generator: torch.Generator) -> torch.Tensor:
    weight = model.get_parameter(f"{target.layer}.weight").detach()[target.rows].float().cpu()
    lengths = weight.norm(dim=0 if target.is_embedding else 1)
    return lengths * (1 + torch.rand(lengths.shape, generator=generator) / 2)
