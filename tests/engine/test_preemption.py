"""Losing one's blocks and computing everything again changes no token."""

from __future__ import annotations

import pytest
from drive import Alone, MakeEngine, drawn, greedy
from tiny import random_prompts

from workbench.engine import Engine
from workbench.events import Preempted
from workbench.trace import Trace


def run_tight(engine: Engine, prompts: list[list[int]], params: list) -> list[list[int]]:
    """Run all prompts; fail unless running sequences were preempted on the way."""
    with Trace.record(engine) as trace:
        outputs = engine.generate(prompts, params)
    preempted = trace.of(Preempted)
    assert len(preempted) >= 3, "blocks were to run out"
    assert any(event.num_computed > 0 for event in preempted)
    assert sum(output.metrics.num_preemptions for output in outputs) == len(preempted)
    return [output.outputs[0].token_ids for output in outputs]


# Under a window sequences hold less, so it takes a smaller cache for them to run out.
TIGHT = {
    "llama": {"num_blocks": 15},
    "mistral": {"num_blocks": 8, "max_batch_tokens": 8},
    "qwen2-windows": {"num_blocks": 15},
}


@pytest.mark.parametrize("family", TIGHT)
@pytest.mark.parametrize("prefix_reuse", [True, False])
def test_preempted_equals_undisturbed(
    make_engine: MakeEngine,
    alone: Alone,
    backend: str,
    device: str,
    family: str,
    prefix_reuse: bool,
) -> None:
    parts = {"model": family, "backend": backend, "device": device}
    prompts = random_prompts(6, seed=8, longest=24)
    params = [greedy(30), drawn(1, 30), greedy(22), drawn(2, 26), greedy(30), greedy(18)]
    expected = alone(prompts, params, **parts)
    engine = make_engine(**parts, **TIGHT[family], block_size=4, prefix_reuse=prefix_reuse)
    assert run_tight(engine, prompts, params) == expected


@pytest.mark.parametrize("policy", ["fcfs", "shortest_first", "priority"])
@pytest.mark.parametrize("chunked", [True, False])
def test_preemption_under_every_policy(
    make_engine: MakeEngine, alone: Alone, policy: str, chunked: bool
) -> None:
    prompts = random_prompts(6, seed=9, longest=24)
    params = [greedy(30)] * 6
    expected = alone(prompts, params)
    engine = make_engine(
        num_blocks=15,
        block_size=4,
        policy=policy,
        chunked_prefill=chunked,
        max_batch_tokens=24,
        max_sequences=6,
    )
    assert run_tight(engine, prompts, params) == expected


def test_stop_strings_and_logprobs_survive_preemption(make_engine: MakeEngine) -> None:
    prompts = random_prompts(5, seed=10, longest=20)
    params = [greedy(30, stop="\x00never\x00", logprobs=2)] * 5
    calm = make_engine().generate(prompts, params)
    tight = make_engine(num_blocks=14, block_size=4).generate(prompts, params)
    assert sum(output.metrics.num_preemptions for output in tight) > 0
    for a, b in zip(calm, tight, strict=True):
        assert a.outputs[0].text == b.outputs[0].text
        assert a.outputs[0].logprobs is not None
        assert b.outputs[0].logprobs is not None
        assert len(b.outputs[0].logprobs) == 30
        for x, y in zip(a.outputs[0].logprobs, b.outputs[0].logprobs, strict=True):
            assert x.token_id == y.token_id
            assert x.logprob == pytest.approx(y.logprob, abs=1e-4)


def test_the_largest_key_is_preempted_first(make_engine: MakeEngine) -> None:
    engine = make_engine(num_blocks=6, block_size=4, policy="priority")
    for number, priority in enumerate([3, 1, 2]):
        engine.add([number + 1] * 6, greedy(14), priority=priority, request_id=str(number))
    with Trace.record(engine) as trace:
        engine.run()
    assert trace.of(Preempted)[0].sequence_id == 0
    ended = [engine.requests[str(i)].metrics.finished for i in range(3)]
    assert ended[1] < ended[2] < ended[0]
