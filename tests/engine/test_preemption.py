"""Losing one's blocks and computing everything again changes no token."""

from __future__ import annotations

import pytest
import torch
from drive import Alone, MakeEngine, drawn, greedy
from tiny import random_prompts

from workbench.engine import Engine
from workbench.events import Preempted
from workbench.scheduler import POLICIES
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


@pytest.mark.parametrize("prefix_reuse", [True, False])
@pytest.mark.parametrize(
    ("family", "preemption"),
    [*((family, "recompute") for family in TIGHT), ("llama", "swap")],
)
def test_preempted_equals_undisturbed(
    make_engine: MakeEngine,
    alone: Alone,
    backend: str,
    device: str,
    family: str,
    prefix_reuse: bool,
    preemption: str,
) -> None:
    parts = {"model": family, "backend": backend, "device": device}
    prompts = random_prompts(6, seed=8, longest=24)
    params = [greedy(30), drawn(1, 30), greedy(22), drawn(2, 26), greedy(30), greedy(18)]
    expected = alone(prompts, params, **parts)
    engine = make_engine(
        **parts,
        **TIGHT[family],
        block_size=4,
        prefix_reuse=prefix_reuse,
        preemption=preemption,
        host_blocks=40 if preemption == "swap" else 0,
    )
    assert run_tight(engine, prompts, params) == expected
    stats = engine.cache.stats()
    assert bool(stats.swapped) == bool(stats.restores) == (preemption == "swap")


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("chunking", ["first_come", "equal_progress", "off"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_preemption_under_every_policy(
    make_engine: MakeEngine, alone: Alone, policy: str, chunking: str, preemption: str
) -> None:
    prompts = random_prompts(6, seed=9, longest=24)
    params = [greedy(30)] * 6
    expected = alone(prompts, params)
    engine = make_engine(
        num_blocks=15,
        block_size=4,
        policy=policy,
        chunked_prefill=chunking != "off",
        chunking="first_come" if chunking == "off" else chunking,
        preemption=preemption,
        host_blocks=24,  # sometimes full
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


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("chunking", ["first_come", "equal_progress", "off"])
def test_nobody_is_preempted_where_that_is_promised(
    make_engine: MakeEngine, alone: Alone, policy: str, chunking: str
) -> None:
    prompts = random_prompts(8, seed=12, longest=24)
    params = [greedy(20) if i % 2 else drawn(i, 26, n=1) for i in range(8)]
    expected = alone(prompts, params)
    engine = make_engine(
        num_blocks=24,
        block_size=4,
        max_batch_tokens=24,
        max_sequences=8,
        capacity="guaranteed_no_evict",
        policy=policy,
        chunked_prefill=chunking != "off",
        chunking="first_come" if chunking == "off" else chunking,
        host_blocks=20 if chunking == "first_come" else 0,
    )
    with Trace.record(engine) as trace:
        outputs = engine.generate([*prompts, *prompts], params * 2)
    assert [output.outputs[0].token_ids for output in outputs] == expected * 2
    assert not trace.of(Preempted)
    assert engine.cache.stats().peak_used > 15


def test_branches_and_beams_under_every_capacity(make_engine: MakeEngine) -> None:
    """Forks that may not start at once wait, and make what they would have made."""
    prompts = random_prompts(3, seed=13, longest=20)
    params = [drawn(1, 14, n=3), greedy(12, beam_width=3, n=3), drawn(2, 16, n=2)]
    calm = make_engine().generate(prompts, params)
    for settings in (
        {"capacity": "guaranteed_no_evict"},
        {"preemption": "swap", "host_blocks": 40},
        {"preemption": "swap", "host_blocks": 3},
    ):
        tight = make_engine(num_blocks=20, block_size=4, **settings)
        outputs = tight.generate(prompts, params)
        for a, b in zip(calm, outputs, strict=True):
            assert [o.token_ids for o in a.outputs] == [o.token_ids for o in b.outputs], settings


def test_evicted_prefixes_come_back_from_the_host(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str
) -> None:
    prompts = [[7 + 3 * i % 50] * 20 + [i + 1, 5, 9] for i in range(6)]
    expected = alone(prompts, greedy(8), device=device)
    engine = make_engine(
        num_blocks=12, block_size=4, host_blocks=40, backend=backend, device=device
    )
    for _ in range(3):
        for prompt, tokens in zip(prompts, expected, strict=True):
            assert engine.generate([prompt], greedy(8))[0].outputs[0].token_ids == tokens
    stats = engine.cache.stats()
    assert stats.restores >= 2 * 5 * 5
    assert stats.hit_rate > 0.5
    assert stats.swapped == stats.recomputed == 0
    no_host = make_engine(num_blocks=12, block_size=4)
    for prompt in [*prompts, *prompts]:
        no_host.generate([prompt], greedy(8))
    assert no_host.cache.stats().hit_rate < 0.1


def test_what_is_kept_of_tokens_survives_a_swap(make_engine: MakeEngine) -> None:
    """Prompt log-probabilities and hidden states: swapped tokens were reported before they left."""
    prompts = random_prompts(5, seed=14, longest=20)
    params = [greedy(24, prompt_logprobs=1, hidden_states=True)] * 5
    calm = make_engine().generate(prompts, params)
    engine = make_engine(num_blocks=14, block_size=4, preemption="swap", host_blocks=40)
    tight = engine.generate(prompts, params)
    assert engine.cache.stats().swapped > 0
    for a, b in zip(calm, tight, strict=True):
        assert a.outputs[0].token_ids == b.outputs[0].token_ids
        assert a.prompt_logprobs is not None
        assert b.prompt_logprobs is not None
        assert [e and e.token_id for e in a.prompt_logprobs] == [
            e and e.token_id for e in b.prompt_logprobs
        ]
        assert a.outputs[0].hidden_states is not None
        torch.testing.assert_close(
            a.outputs[0].hidden_states, b.outputs[0].hidden_states, rtol=1e-4, atol=1e-4
        )
