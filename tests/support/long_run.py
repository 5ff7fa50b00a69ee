"""Steps without end, of an engine whose model costs nothing: for what must stay bounded."""

from __future__ import annotations

import random

import workbench as wb
from workbench.bench.idle import idle_engine

PARAMS = wb.SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)


def long_run_engine() -> wb.Engine:
    """Return an engine of few blocks: prefixes are shared, found again and evicted."""
    return idle_engine(4, 40)


def work(engine: wb.Engine, source: random.Random, steps: int) -> None:
    """Step with a few requests that share prefixes, come and go."""
    for _ in range(steps):
        if len(engine.scheduler.running) + len(engine.scheduler.waiting) < 4:
            prompt = [*range(5, 5 + source.randint(0, 20)), *source.choices(range(1, 100), k=4)]
            engine.add(prompt, PARAMS)
        for sequence in engine.step().finished:
            engine.forget(sequence.request.request_id)
