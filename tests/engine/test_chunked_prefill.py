"""A prompt computed in chunks, down to one token each, gives what a whole prefill gives."""

from __future__ import annotations

import pytest
from drive import Alone, MakeEngine, greedy
from tiny import random_prompts


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("budget", [1, 3, 16, 50])
def test_chunks_equal_the_whole(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str, family: str, budget: int
) -> None:
    parts = {"model": family, "backend": backend, "device": device}
    prompts = random_prompts(4, seed=budget, longest=45)
    expected = alone(prompts, greedy(10), **parts)
    engine = make_engine(**parts, max_batch_tokens=budget, max_sequences=min(budget, 4))
    for prompt in prompts:
        engine.add(prompt, greedy(10), request_id=str(prompts.index(prompt)))
    records = engine.run()
    assert max(record.plan.num_tokens for record in records) <= budget
    chunks = [n for r in records for n in r.plan.num_new[r.plan.num_decodes :]]
    assert budget == 1 or chunks, "no prompt was computed in chunks"
    got = [engine.output(str(i)).outputs[0].token_ids for i in range(len(prompts))]
    assert got == expected


def test_a_long_prompt_does_not_stop_the_decoding_of_others(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch_tokens=8, max_sequences=4)
    short = engine.add([5, 6, 7], greedy(20))
    engine.step()
    long = engine.add(list(range(1, 81)), greedy(2))
    records = engine.run()
    made = [[name for name, _, _ in record.tokens] for record in records]
    assert made[:10] == [[short]] * 10, "a token of the short one in every step"
    assert [name for names in made for name in names].count(long) == 2


def test_unsplit_prompts_are_never_split(make_engine: MakeEngine, alone: Alone) -> None:
    prompts = random_prompts(6, seed=5, longest=30)
    expected = alone(prompts, greedy(6))
    engine = make_engine(max_batch_tokens=32, max_sequences=8, chunked_prefill=False)
    for i, prompt in enumerate(prompts):
        engine.add(prompt, greedy(6), request_id=str(i))
    for record in engine.run():
        rows = zip(record.plan.sequences, record.plan.starts, record.plan.num_new, strict=True)
        for sequence, start, num_new in rows:
            assert start > 0 or num_new == sequence.num_prompt_tokens
    got = [engine.output(str(i)).outputs[0].token_ids for i in range(len(prompts))]
    assert got == expected
