"""A scheduling policy decides who goes first, never what anyone gets."""

from __future__ import annotations

from typing import Any

import pytest
from drive import Alone, MakeEngine, greedy, tokens_of
from tiny import random_prompts

from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.scheduler import POLICIES

PROMPTS = random_prompts(7, seed=50)


def order(engine: Engine) -> list[str]:
    """Run what is queued and return the ids of requests in the order of their first token."""
    first: dict[str, None] = {}
    for record in engine.run():
        first.update(dict.fromkeys(name for name, _, _ in record.tokens))
    return list(first)


def queue(engine: Engine, **settings: Any) -> None:
    for i, prompt in enumerate(PROMPTS):
        engine.add(prompt, greedy(6), request_id=str(i), priority=[4, 2, 5, 1, 3, 1, 0][i])


EXPECTED = {
    "fcfs": [0, 1, 2, 3, 4, 5, 6],
    "shortest_first": sorted(range(7), key=lambda i: (len(PROMPTS[i]), i)),
    "priority": [6, 3, 5, 1, 4, 0, 2],
    "longest_first": sorted(range(7), key=lambda i: (-len(PROMPTS[i]), i)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_order_changes_and_tokens_do_not(make_engine: MakeEngine, alone: Alone, name: str) -> None:
    expected = alone(PROMPTS, greedy(6))
    policy = POLICIES.get(name, lambda s: (-s.num_prompt_tokens, s.sequence_id))
    engine = make_engine(policy=policy, max_sequences=1)
    queue(engine)
    assert order(engine) == [str(i) for i in EXPECTED[name]]
    got = [engine.output(str(i)).outputs[0].token_ids for i in range(7)]
    assert got == expected


def test_a_policy_swapped_in_between_steps(make_engine: MakeEngine, alone: Alone) -> None:
    expected = alone(PROMPTS, greedy(6))
    engine = make_engine(max_sequences=1)
    queue(engine)
    while not engine.output("1").finished:
        engine.step()
    engine.swap(scheduler_policy=lambda sequence: -sequence.sequence_id)
    assert order(engine) == ["6", "5", "4", "3", "2"]
    got = [engine.output(str(i)).outputs[0].token_ids for i in range(7)]
    assert got == expected
    engine.swap(scheduler_policy="priority")
    assert engine.scheduler.policy is POLICIES["priority"]


def test_an_unknown_policy_changes_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    before = engine.scheduler.policy, engine.sampler, engine.runner.backend
    for wrong in (
        {"scheduler_policy": "fairest"},
        {"backend": "fastest"},
        {"sampler": 3},
        {"scheduler_policy": "priority", "backend": "fastest"},
    ):
        with pytest.raises(ConfigError):
            engine.swap(**wrong)
    assert before == (engine.scheduler.policy, engine.sampler, engine.runner.backend)


def test_a_sampler_swapped_in_between_steps(make_engine: MakeEngine) -> None:
    engine = make_engine()
    plain = engine.sampler

    def second_best(logits, sequences):
        tokens = plain(logits, sequences)
        tokens.token_ids = logits.topk(2).indices[:, 1].tolist()
        return tokens

    name = engine.add(PROMPTS[2], greedy(3))
    engine.step()
    engine.swap(sampler=second_best)
    engine.run()
    got = engine.output(name).outputs[0].token_ids
    expected = tokens_of(make_engine(), [PROMPTS[2]], greedy(3))[0]
    assert got[0] == expected[0]
    assert got[1] != expected[1]
