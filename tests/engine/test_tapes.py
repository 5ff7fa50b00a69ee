"""Decodes replayed from a tape are the eager decodes, whatever happens between them.

Every invariant of this folder also runs with a tape: the `native` backend on a CPU has one.
"""

from __future__ import annotations

from typing import Any

from drive import MakeEngine, drawn, greedy, tokens_of
from tiny import random_prompts

from workbench.engine import Engine
from workbench.run import DecodeTapes


def tapes_of(engine: Engine) -> DecodeTapes:
    assert engine.runner.tapes is not None
    return engine.runner.tapes


def test_tokens_do_not_depend_on_tapes(make_engine: MakeEngine) -> None:
    """Batches shrink and grow, contexts grow over blocks, prompts arrive."""
    prompts = random_prompts(16, seed=71, longest=60)
    params = [greedy(8 + 3 * i) if i % 2 else drawn(i, 6 + 4 * i) for i in range(16)]
    settings: dict[str, Any] = {"backend": "native", "max_sequences": 9, "max_batch_tokens": 40}
    plain, fast = (make_engine(tape=choice, **settings) for choice in (False, True))
    assert tokens_of(plain, prompts, params) == tokens_of(fast, prompts, params)
    assert tapes_of(fast).replays > 10
    assert "not every row decodes" in tapes_of(fast).eager


def test_preemption_forks_and_checkpoints(make_engine: MakeEngine) -> None:
    prompts = random_prompts(5, seed=72, longest=60)
    params = [drawn(i, 30, n=2) if i % 3 == 0 else drawn(i, 30) for i in range(5)]
    settings: dict[str, Any] = {"num_blocks": 24, "block_size": 8, "max_batch_tokens": 64}
    outputs = []
    for choice in (False, True):
        engine = make_engine(backend="native", tape=choice, **settings)
        ids = [engine.add(p, own) for p, own in zip(prompts, params, strict=True)]
        for _ in range(12):
            engine.step()
        state = engine.checkpoint()
        for _ in range(7):
            engine.step()
        engine.restore(state)
        engine.run()
        outputs.append([[c.token_ids for c in engine.output(name).outputs] for name in ids])
    assert outputs[0] == outputs[1]
    assert tapes_of(engine).replays > 10


def test_two_engines_replay_in_turn(make_engine: MakeEngine) -> None:
    """They share a model; each has memory of its own."""
    prompts = random_prompts(4, seed=76)
    expected = tokens_of(make_engine(backend="native", tape=False), prompts, greedy(16))
    engines = [make_engine(backend="native", tape=True) for _ in range(2)]
    ids = [[engine.add(prompt, greedy(16)) for prompt in prompts] for engine in engines]
    while any(engine.has_work for engine in engines):
        for engine in engines:
            engine.step()
    for engine, own in zip(engines, ids, strict=True):
        assert [engine.output(i).outputs[0].token_ids for i in own] == expected
        assert tapes_of(engine).replays > 10
