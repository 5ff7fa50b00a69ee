"""A trace of any size for views: the real scheduler and cache, and a model that costs nothing.

Requests share prefixes and come and go, so that blocks are shared, cached and evicted; prompts and
outputs are real text, so that what is sent compresses as real traces do.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import torch

from workbench.bench.scheduler import NoRunner
from workbench.cache import KVCache
from workbench.config import ModelConfig, SchedulerConfig
from workbench.data.prompts import load_prompts
from workbench.engine import Engine
from workbench.models.resolve import resolve_model
from workbench.models.tokenizer import Tokenizer
from workbench.request import Sequence
from workbench.results import SampledTokens
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler
from workbench.trace import Trace

_BLOCK = 16
_NEW_TOKENS = (40, 400)  # of a request, from and to


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


def make_trace(num_blocks: int, steps: int, sequences: int, *, seed: int = 0) -> Trace:
    """Return the trace of `steps` steps with about `sequences` running, in a cache that fills."""
    tokenizer = Tokenizer.from_folder(resolve_model("tinypy"))
    text = [token for prompt in load_prompts() for token in tokenizer.encode(prompt)]
    source = random.Random(seed)
    # So long that the running ones fill two thirds of the cache; the rest holds what has ended.
    prompt = max(_BLOCK, 2 * num_blocks * _BLOCK // (3 * sequences) - _NEW_TOKENS[1] // 2)
    engine = _engine(num_blocks, sequences, prompt + 2 * _NEW_TOKENS[1], tokenizer, text)
    shared = text[: prompt // 2]
    with Trace.record(engine) as trace:
        for _ in range(steps):
            while engine.scheduler.num_unfinished < sequences + 4:
                start = source.randrange(len(text))
                own = (text[start:] + text * (1 + prompt // len(text)))[: prompt - len(shared)]
                head = shared if source.random() < 0.5 else []
                count = source.randint(*_NEW_TOKENS)
                params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
                engine.add([*head, *own], params)
            finished = engine.step().finished
            for sequence in finished:
                engine.forget(sequence.request.request_id)
    return trace


def _engine(
    num_blocks: int, sequences: int, context: int, tokenizer: Tokenizer, text: list[int]
) -> Engine:
    config = ModelConfig("none", tokenizer.vocab_size, 1, 1, 0, 1, 1, 1, context=context)
    model = SimpleNamespace(
        config=config,
        tokenizer=tokenizer,
        rope_scope=lambda _: None,
        parameters=list,
        device=torch.device("cpu"),
    )
    cache = KVCache.for_config(config, num_blocks, _BLOCK)
    limits = SchedulerConfig(max_batch_tokens=8192, max_sequences=sequences)
    runner = NoRunner(model, cache)
    parts: tuple[Any, ...] = model, cache, Scheduler(cache, limits), runner, TextSampler(text)
    return Engine(*cast("tuple[Any, Any, Any, Any, Any]", parts))
