"""Mixed batches for `lora_shrink` and `lora_expand`: what the cases of both are made of.

A variant of some rank has some tokens, scattered among as many that go through no adapter, and its
rank rows lie in no order; tiles without tokens make their number a power of two, as in CUDA graphs.
"""

from __future__ import annotations

from typing import Any

import torch

from workbench.kernels.launch import power_of_2
from workbench.kernels.spec import Inputs

# Decodes of llama-8b: 32 adapters of rank 16 with a token each, with eight each, of mixed ranks.
MIXED = {"counts": [1] * 32, "ranks": [16] * 32, "tile": 1}
EIGHTS = {"counts": [8] * 32, "ranks": [16] * 32}
RANKS = {"counts": [1] * 32, "ranks": [8, 16, 32, 64] * 8, "tile": 1}


def make_mix(
    device: torch.device, generator: torch.Generator, counts: list[int], ranks: list[int], tile: int
) -> Inputs:
    """Return rows, ranks, order and tiles of variants v of rank ranks[v] with counts[v] tokens."""
    num_tokens, width = 2 * sum(counts), max(16, 1 << (max(ranks) - 1).bit_length())
    places = torch.randperm(num_tokens, generator=generator, device=device)[: sum(counts)]
    order = torch.zeros(num_tokens, dtype=torch.int32, device=device)
    order[: len(places)] = places.int()
    rows = torch.zeros(len(ranks), width, dtype=torch.int32, device=device)
    shuffled = torch.randperm(sum(ranks), generator=generator, device=device).int()
    made, first = [], 0
    for variant, (count, rank) in enumerate(zip(counts, ranks, strict=True)):
        rows[variant, :rank] = shuffled[sum(ranks[:variant]) :][:rank]
        made += [(variant, first + at, min(tile, count - at)) for at in range(0, count, tile)]
        first += count
    made += [(0, 0, 0)] * (power_of_2(len(made)) - len(made))
    return {
        "rows": rows,
        "ranks": torch.tensor(ranks, dtype=torch.int32, device=device),
        "order": order,
        "tiles": torch.tensor(made, dtype=torch.int32, device=device),
    }


def used_tiles(inputs: Inputs) -> list[tuple[int, int]]:
    """Return (rank, tokens) of every tile."""
    ranks = inputs["ranks"].tolist()
    return [(ranks[variant], count) for variant, _, count in inputs["tiles"].tolist()]


def used_rows(inputs: Inputs) -> int:
    """Return how many rank rows the variants with tokens have."""
    ranks = inputs["ranks"].tolist()
    return sum(ranks[v] for v in {v for v, _, count in inputs["tiles"].tolist() if count})


def num_tokens(inputs: Inputs) -> int:
    """Return how many tokens go through an adapter."""
    return sum(count for _, count in used_tiles(inputs))


def multiply_adds(inputs: Inputs, size: int) -> Any:
    """Return multiplications and additions of all tokens with rank rows of `size` numbers."""
    return sum(2 * rank * count * size for rank, count in used_tiles(inputs))
