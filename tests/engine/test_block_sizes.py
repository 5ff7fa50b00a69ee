"""The size of a block is a matter of memory, not of results."""

from __future__ import annotations

import pytest
from drive import Alone, MakeEngine, greedy, tokens_of
from tiny import random_prompts


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("block_size", [1, 2, 16, 64])
def test_any_block_size(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str, family: str, block_size: int
) -> None:
    parts = {"model": family, "backend": backend, "device": device}
    prompts = random_prompts(5, seed=12, longest=70)
    prompts.append(prompts[0] + [5, 6, 7])
    expected = alone(prompts, greedy(15), **parts)
    engine = make_engine(**parts, block_size=block_size, num_blocks=640 // block_size)
    assert tokens_of(engine, prompts, greedy(15)) == expected
    assert tokens_of(engine, prompts, greedy(15)) == expected, "now from the prefix cache"
