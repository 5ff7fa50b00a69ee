"""Random LoRA adapters of all linear layers, and the requests that go through them.

For `workbench bench lora`: what an adapter says does not matter there, only what it costs.
"""

from __future__ import annotations

import random
from itertools import accumulate

import torch

from workbench.lora import Adapter, LoRAConfig, LoRAPair, targets_of
from workbench.models import DecoderLM

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class RandomAdapters:
    """Makes adapters over a model. Those of equal rank share their tensors, and differ in scale."""

    def __init__(self, model: DecoderLM) -> None:
        self.model = model
        self._pairs: dict[int, dict[str, LoRAPair]] = {}
        self._made: dict[tuple[int, int], Adapter] = {}

    def make(self, rank: int, number: int = 0) -> Adapter:
        """Return the number-th adapter of a rank."""
        if (rank, number) not in self._made:
            if rank not in self._pairs:
                self._pairs[rank] = self._make(rank)
            scale = 1.0 + number / 64
            pairs = {
                path: LoRAPair(pair.a, pair.b, scale) for path, pair in self._pairs[rank].items()
            }
            config = LoRAConfig(rank, rank * scale, MODULES)
            self._made[rank, number] = Adapter(config, pairs)
        return self._made[rank, number]

    def _make(self, rank: int) -> dict[str, LoRAPair]:
        dtype = self.model.dtype
        generator = torch.Generator().manual_seed(rank)
        made: dict[tuple[int, int], LoRAPair] = {}
        pairs = {}
        for path, target in targets_of(self.model).items():
            if target.is_head or target.is_embedding:
                continue
            shape = target.inputs, target.outputs
            if shape not in made:
                a = torch.randn(rank, target.inputs, generator=generator) / target.inputs**0.5
                b = 0.02 * torch.randn(target.outputs, rank, generator=generator)
                made[shape] = LoRAPair(a.to(dtype), b.to(dtype), 1.0)
            pairs[path] = made[shape]
        return pairs


def zipf(count: int, num_adapters: int, seed: int = 0, exponent: float = 1.0) -> list[int]:
    """Return which adapter each of `count` requests names: adapter i with weight 1 / (i + 1)."""
    weights = list(accumulate(1 / (i + 1) ** exponent for i in range(num_adapters)))
    return random.Random(seed).choices(range(num_adapters), cum_weights=weights, k=count)
