"""A trace of any size for views: the real scheduler and cache, and a model that costs nothing.

Requests share prefixes and come and go, so that blocks are shared, cached and evicted; prompts and
outputs are real text, so that what is sent compresses as real traces do.
"""

from __future__ import annotations

import random

from workbench.bench.idle import TextSampler, idle_engine
from workbench.data.prompts import load_prompts
from workbench.models.resolve import resolve_model
from workbench.models.tokenizer import Tokenizer
from workbench.sampling_params import SamplingParams
from workbench.trace import Trace

_BLOCK = 16
_NEW_TOKENS = (40, 400)  # of a request, from and to


def make_trace(num_blocks: int, steps: int, sequences: int, *, seed: int = 0) -> Trace:
    """Return the trace of `steps` steps with about `sequences` running, in a cache that fills."""
    tokenizer = Tokenizer.from_folder(resolve_model("tinypy"))
    text = [token for prompt in load_prompts() for token in tokenizer.encode(prompt)]
    source = random.Random(seed)
    # So long that the running ones fill two thirds of the cache; the rest holds what has ended.
    prompt = max(_BLOCK, 2 * num_blocks * _BLOCK // (3 * sequences) - _NEW_TOKENS[1] // 2)
    engine = idle_engine(
        sequences,
        prompt + 2 * _NEW_TOKENS[1],
        num_blocks=num_blocks,
        max_batch_tokens=8192,
        tokenizer=tokenizer,
        sampler=TextSampler(text),
    )
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
