"""Neighbours do not matter: a batch of N gives what each gives alone."""

from __future__ import annotations

import pytest
from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from tiny import TEXTS, random_prompts


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_a_batch_equals_each_alone(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str, family: str
) -> None:
    parts = {"model": family, "backend": backend, "device": device}
    prompts = random_prompts(9, seed=1)
    params = [greedy(20) if i % 3 else drawn(i, 20) for i in range(9)]
    expected = alone(prompts, params, **parts)
    assert len({token for row in expected for token in row}) > 50, "the model repeats itself"
    assert tokens_of(make_engine(**parts), prompts, params) == expected


def test_requests_that_join_and_leave_equal_each_alone(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str
) -> None:
    parts = {"backend": backend, "device": device}
    prompts = random_prompts(8, seed=2)
    params = [greedy(5 + 4 * i) for i in range(8)]
    expected = alone(prompts, params, **parts)
    engine = make_engine(**parts, max_sequences=4)
    ids = []
    for prompt, own in zip(prompts, params, strict=True):
        ids.append(engine.add(prompt, own))
        engine.step()
        engine.step()
    sizes = {len(record.plan.sequences) for record in engine.run()}
    assert len(sizes) > 2, "the batch was to grow and shrink"
    assert [engine.output(i).outputs[0].token_ids for i in ids] == expected


def test_texts_and_their_ids_are_the_same_prompt(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert engine.tokenizer is not None
    ids = [engine.tokenizer.encode(text) for text in TEXTS]
    from_text = engine.generate(TEXTS, greedy(12))
    from_ids = engine.generate(ids, greedy(12))
    assert [o.prompt for o in from_text] == TEXTS
    assert [o.prompt_token_ids for o in from_text] == ids
    assert [o.outputs[0].token_ids for o in from_text] == [o.outputs[0].token_ids for o in from_ids]
    assert [o.outputs[0].text for o in from_text] == [o.outputs[0].text for o in from_ids]


def test_many_requests_in_a_small_engine(make_engine: MakeEngine, alone: Alone) -> None:
    prompts = random_prompts(60, seed=3, longest=30)
    expected = alone(prompts, greedy(4))
    engine = make_engine(num_blocks=12, max_sequences=7, max_batch_tokens=24, block_size=8)
    assert tokens_of(engine, prompts, greedy(4)) == expected
