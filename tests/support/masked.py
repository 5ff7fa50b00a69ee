"""What a sequence must be under a dropping policy: transformers' model with a mask made by hand.

Nothing of the engine is used: the mask says which positions each position sees, block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# (computed tokens, kept full blocks, their masses) -> the blocks that go.
Choose = Callable[[int, list[int], dict[int, float]], list[int]]


def dense_logprobs(
    hf: Any, tokens: list[int], num_prompt: int, block_size: int, choose: Choose
) -> tuple[list[float], list[list[int]]]:
    """Return the log-probability of each token behind the prompt, and what was kept before each.

    hf: transformers' model in float32 with eager attention. Token by token: the whole sequence so
    far under one dense mask, so that every earlier row is what it was.
    """
    mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    gone: list[int] = []
    masses: dict[int, float] = {}
    logprobs, kept_before = [], []
    for length in range(num_prompt, len(tokens)):
        logits, weights = _forward(hf, tokens[:length], mask[:length, :length])
        logprobs.append(torch.log_softmax(logits[-1], -1)[tokens[length]].item())
        for index in range(-(-length // block_size)):
            if index not in gone:
                span = slice(index * block_size, (index + 1) * block_size)
                masses[index] = masses.get(index, 0.0) + weights[:, :, -1, span].sum().item()
        kept = [index for index in range(length // block_size) if index not in gone]
        gone += choose(length, kept, masses)
        kept_before.append([index for index in kept if index not in gone])
        for index in gone:  # the row of the next token, and all later ones
            mask[length:, index * block_size : (index + 1) * block_size] = False
    return logprobs, kept_before


@torch.inference_mode()
def _forward(hf: Any, tokens: list[int], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [T, vocab] and attention weights [layers, heads, T, T] under a mask [T, T]."""
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    out = hf(torch.tensor([tokens]), attention_mask=bias[None, None], output_attentions=True)
    return out.logits[0], torch.cat(out.attentions)
