"""No state outside an engine: two in one process do not meet, and a cell can be run twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from tiny import TEXTS, random_prompts

import workbench as wb
from workbench.trace import Trace


def test_two_engines_interleaved_equal_each_alone(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str
) -> None:
    prompts = random_prompts(8, seed=60)
    params = [greedy(14) if i % 2 else drawn(i, 14) for i in range(8)]
    expected = alone(prompts, params, device=device)
    engines = [
        make_engine(backend=backend, device=device, block_size=8),
        make_engine(backend="sdpa", device=device, max_batch_tokens=9, max_sequences=4),
    ]
    with Trace.record(engines[0]) as trace:
        for number, engine in enumerate(engines):
            for i in range(number, 8, 2):
                engine.add(prompts[i], params[i], request_id=str(i))
        while any(engine.has_work for engine in engines):
            for engine in engines:
                engine.step()
    for number, engine in enumerate(engines):
        for i in range(number, 8, 2):
            assert engine.output(str(i)).outputs[0].token_ids == expected[i]
    assert {e.request_id for e in trace.of(wb.events.RequestAdded)} == {"0", "2", "4", "6"}


def test_the_same_cell_run_twice(checkpoint: Callable[[str], Path]) -> None:
    def cell() -> list[list[int]]:
        with wb.LLM(
            checkpoint("llama"), device="cpu", dtype="float32", num_blocks=64, seed=3
        ) as llm:
            outputs = llm.generate(TEXTS, wb.SamplingParams(max_tokens=16), progress=False)
            return [output.outputs[0].token_ids for output in outputs]

    assert cell() == cell()


def test_the_same_cell_run_twice_on_one_engine(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompts = random_prompts(4, seed=61)
    params = [drawn(i) for i in range(4)]
    first = tokens_of(engine, prompts, params)
    assert tokens_of(engine, prompts, params) == first
    assert engine.requests == {}
    engine.swap(backend="reference")
    assert engine.cache.blocks.clear_cached() > 0
    assert tokens_of(engine, prompts, params) == first
