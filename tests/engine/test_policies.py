"""A scheduling policy decides who goes first, never what anyone gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from drive import Alone, MakeEngine, greedy, tokens_of
from tiny import random_prompts

from workbench.config import SchedulerConfig
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


def test_budgets_changed_between_steps(make_engine: MakeEngine, alone: Alone) -> None:
    """Lower ones stop nobody who decodes; tokens never change."""
    prompts = [[1, 2], [3, 4], [5, 6], list(range(10, 40)), [7, 8], [9, 9]]
    expected = alone(prompts, greedy(6))
    engine = make_engine(max_sequences=4, max_batch_tokens=12, chunking="equal_progress")
    config = engine.scheduler.config
    for i, prompt in enumerate(prompts):
        engine.add(prompt, greedy(6), request_id=str(i), priority=-i)
    assert engine.step().plan.num_tokens == 12
    lowest = replace(config, max_sequences=1, max_batch_tokens=2, policy="priority")
    engine.swap(scheduler_config=lowest)
    plan = engine.step().plan
    assert plan.num_tokens == plan.num_decodes == 3, "beside which no prompt fits"
    assert engine.scheduler.policy is POLICIES["priority"]
    plans = [record.plan for record in engine.run()]
    assert max(plan.num_tokens for plan in plans if plan.num_decodes == 0) == 2
    last = [plan for plan in plans if plan.sequences[-1].request.request_id in "45"]
    assert {len(plan.sequences) for plan in last} == {1}
    assert [p.sequences[0].request.request_id for p in last] == ["5"] * 6 + ["4"] * 6
    got = [engine.output(str(i)).outputs[0].token_ids for i in range(len(prompts))]
    assert got == expected
    engine.swap(scheduler_config=config)
    assert engine.scheduler.policy is POLICIES["fcfs"]


def test_budgets_under_which_a_request_could_not_end_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sequences=4, chunked_prefill=False, max_batch_tokens=64)
    beams = greedy(4, beam_width=3)
    engine.add([1, 2, 3], beams, request_id="beams")
    engine.add(list(range(1, 41)), greedy(4), request_id="long")
    config = engine.scheduler.config
    for name, changes in (
        ("beams", {"max_sequences": 2}),
        ("long", {"max_batch_tokens": 39}),
    ):
        with pytest.raises(ConfigError, match=f"request '{name}' could not go on"):
            engine.swap(scheduler_config=replace(config, **changes))
        assert engine.scheduler.config is config
        engine.abort(name)
        engine.swap(scheduler_config=replace(config, **changes))
        engine.swap(scheduler_config=config)


def test_an_unknown_policy_changes_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()

    def parts() -> tuple[Any, ...]:
        scheduler = engine.scheduler
        return scheduler.policy, scheduler.config, engine.sampler, engine.runner.backend

    before = parts()
    for wrong in (
        {"scheduler_policy": "fairest"},
        {"backend": "fastest"},
        {"sampler": 3},
        {"scheduler_policy": "priority", "backend": "fastest"},
        {"scheduler_config": {"max_sequences": 2}},
        {"scheduler_config": SchedulerConfig(policy="priority", preemption="swap")},
        {"scheduler_config": SchedulerConfig(policy="fairest")},
    ):
        with pytest.raises(ConfigError):
            engine.swap(**wrong)
    assert before == parts()


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
