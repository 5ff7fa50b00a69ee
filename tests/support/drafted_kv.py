"""What a draft model has in the blocks of its target's cache, held against a fresh pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from workbench.batch import StepPlan
from workbench.cache import CompanionKV, KVCache
from workbench.models import DecoderLM
from workbench.request import Sequence
from workbench.run import Runner


def perturbed(model: DecoderLM, by: float = 0.03) -> DecoderLM:
    """Return a model of other weights that often says what this one does."""
    other, source = copy.deepcopy(model), torch.Generator().manual_seed(4)
    other.tokenizer = None  # so it drafts for whatever model has as many tokens
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=source).to(parameter.device)
            parameter += by * float(parameter.std()) * noise if parameter.numel() > 1 else 0
    return other


def poison(kv: CompanionKV) -> None:
    """Make what nobody has computed show as NaN."""
    for tensor in kv.tensors:
        tensor.fill_(torch.nan)


def fresh_kv(model: DecoderLM, token_ids: list[int]) -> list[Tensor]:
    """Return each layer's keys and values [2, T, K, D] of a fresh pass over these tokens."""
    cache = KVCache.for_model(model, num_blocks=1, block_size=max(1, len(token_ids)))
    sequence = _Tokens(token_ids)
    cache.blocks.open(0, None)
    cache.blocks.grow(0, 0, len(token_ids))
    plan = StepPlan(1, [sequence], [0], [len(token_ids)], [0])  # type: ignore[list-item]
    plan.num_decodes = int(len(token_ids) == 1)
    Runner(model, cache, "sdpa").run(plan)
    return [layer[:, 0] for layer in cache.layers]


class _Tokens:
    """A sequence as far as a runner looks at it."""

    sequence_id, prompt_logprobs, activations, request = 0, None, None, None

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids, self.num_prompt_tokens = token_ids, len(token_ids)
        self.request = self
        self.embeds, self.lora = None, ()


def check_companion(kv: CompanionKV, model: DecoderLM, sequences: Iterable[Sequence]) -> int:
    """Raise `AssertionError` unless all that is said to be computed of these sequences is what a
    fresh pass makes of their tokens; return how many tokens that are."""
    total = 0
    for sequence in sequences:
        table = kv.first.tables[sequence.sequence_id]
        count = 0 if table.holes else kv.num_computed(table, sequence.token_ids)
        if not count:
            continue
        total += count
        slots = [table.slot(i, kv.block_size, kv.first.pool.ids.start) for i in range(count)]
        expected = fresh_kv(model, sequence.token_ids[:count])
        for layer, wanted in zip(kv.layers, expected, strict=True):
            found = layer.flatten(1, 2)[:, slots]
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    return total
