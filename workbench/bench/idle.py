"""Engines whose model costs nothing: the real scheduler, cache and bookkeeping, and nothing else.

For benches of those, of recording and of views, whose figures a model would drown.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.config import ModelConfig, SchedulerConfig
from workbench.engine import Engine
from workbench.models.tokenizer import Tokenizer
from workbench.request import Sequence
from workbench.results import ForwardOutput, SampledTokens
from workbench.scheduler import Scheduler

_BLOCK = 16
_NOTHING = ForwardOutput(torch.empty(0))


class NoRunner:
    """Stands where the runner is and computes nothing."""

    device = torch.device("cpu")
    captured: tuple[str, ...] = ()
    preparations = 0
    backend = SimpleNamespace(name="none")
    draw = None

    def __init__(self, model: Any, cache: KVCache) -> None:
        self.model, self.cache = model, cache

    def run(self, plan: StepPlan) -> ForwardOutput:
        """Return no logits to speak of."""
        return _NOTHING

    def close(self) -> None:
        """Nothing to close."""


class ConstantSampler:
    """Stands where the sampler is and always chooses token 7."""

    def __call__(self, logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
        """Return token 7 for every row."""
        return SampledTokens([7] * len(sequences))


class TextSampler:
    """Stands where the sampler is and writes down a text, each sequence from its own place on."""

    def __init__(self, text: list[int]) -> None:
        self._text = text

    def __call__(self, logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
        """Return the next token of each row."""
        text, count = self._text, len(self._text)
        return SampledTokens(
            [text[(s.sequence_id * 131 + s.num_tokens) % count] for s in sequences]
        )


def idle_engine(
    num_sequences: int,
    num_tokens: int,
    *,
    num_blocks: int | None = None,
    max_batch_tokens: int = 2048,
    tokenizer: Tokenizer | None = None,
    sampler: ConstantSampler | TextSampler | None = None,
) -> Engine:
    """Return an engine that runs so many sequences of at most `num_tokens`, whose model is free.

    num_blocks: of the cache (None: room for all of them). tokenizer: for a trace that has texts.
    """
    vocab_size = 128 if tokenizer is None else tokenizer.vocab_size
    config = ModelConfig("none", vocab_size, 1, 1, 0, 1, 1, 1, context=num_tokens + 1)
    model = SimpleNamespace(
        config=config,
        tokenizer=tokenizer,
        rope_scope=lambda _: None,
        parameters=list,
        device=torch.device("cpu"),
    )
    blocks = num_blocks or num_sequences * (num_tokens // _BLOCK + 2)
    cache = KVCache.for_config(config, blocks, _BLOCK)
    budgets = SchedulerConfig(
        max_batch_tokens=max(max_batch_tokens, num_sequences), max_sequences=num_sequences
    )
    scheduler, runner = Scheduler(cache, budgets), NoRunner(model, cache)
    parts: tuple[Any, ...] = model, cache, scheduler, runner, sampler or ConstantSampler()
    return Engine(*cast("tuple[Any, Any, Any, Any, Any]", parts))
