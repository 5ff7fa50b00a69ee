"""A paused request makes no token, and makes the same ones when it goes on."""

from __future__ import annotations

from typing import Any

import pytest
from drive import Alone, MakeEngine, drawn, greedy
from tiny import random_prompts

from workbench.errors import ConfigError, RequestError, RequestFinished, UnknownRequest
from workbench.events import SequencePaused, SequenceResumed, StepDone
from workbench.guided_params import GuidedDecodingParams
from workbench.llm import LLM
from workbench.scheduler.books import StepInProgress
from workbench.trace import Trace

PROMPTS = random_prompts(5, seed=31, longest=20)
PARAMS = [greedy(16), drawn(1, 20), greedy(12), drawn(2, 16), greedy(20)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"num_blocks": 14, "block_size": 4},
    {"num_blocks": 14, "block_size": 4, "preemption": "swap", "host_blocks": 30},
    {"num_blocks": 14, "block_size": 4, "capacity": "guaranteed_no_evict"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_paused_equals_undisturbed(
    make_engine: MakeEngine, alone: Alone, settings: dict[str, Any], release: bool, at: int
) -> None:
    expected = alone(PROMPTS, PARAMS)
    engine = make_engine(**settings)
    names = [engine.add(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
    engine.run(at)
    for name in names[1:3]:
        engine.pause(name, release=release)
    made = [engine.output(name).outputs[0].token_ids for name in names[1:3]]
    engine.run()
    assert not engine.has_work
    assert [engine.output(name).outputs[0].token_ids for name in names[1:3]] == made
    assert all(engine.output(name).finished for name in [names[0], *names[3:]])
    for name in names[1:3]:
        engine.resume(name)
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


def test_all_branches_pause_together(make_engine: MakeEngine) -> None:
    params = drawn(3, 14, n=3)
    expected = [o.token_ids for o in make_engine().generate([PROMPTS[0]], params)[0].outputs]
    engine = make_engine(block_size=4)
    name = engine.add(PROMPTS[0], params)
    engine.run(3)
    engine.pause(name)
    assert not engine.has_work
    assert len(engine.scheduler.paused) == 3
    engine.resume(name)
    engine.run()
    assert [o.token_ids for o in engine.output(name).outputs] == expected


def test_it_is_told(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with Trace.record(engine) as trace:
        name = engine.add(PROMPTS[0], greedy(6))
        engine.run(2)
        engine.pause(name)
        engine.resume(name)
        engine.run()
    kinds = [
        type(event)
        for event in trace.events
        if isinstance(event, SequencePaused | SequenceResumed | StepDone)
    ]
    assert kinds == [*[StepDone] * 2, SequencePaused, SequenceResumed, *[StepDone] * 4]


@pytest.mark.parametrize("release", [False, True])
def test_abort_of_a_paused_request(make_engine: MakeEngine, release: bool) -> None:
    engine = make_engine(preemption="swap", host_blocks=8)
    name = engine.add(PROMPTS[0], greedy(9))
    engine.run(3)
    engine.pause(name, release=release)
    assert len(engine.abort(name).outputs[0].token_ids) == 3
    with pytest.raises(RequestFinished):
        engine.pause(name)
    with pytest.raises(RequestFinished):
        engine.resume(name)
    with pytest.raises(UnknownRequest):
        engine.pause("nobody")


def test_a_time_out_ends_a_paused_request(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[0], greedy(9), timeout=1e-9)
    engine.pause(name)
    engine.step()
    assert engine.output(name).outputs[0].finish_reason == "timeout"


def test_a_stream_of_a_paused_request_says_so(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[0], greedy(9))
    stream = engine.stream(name)
    next(stream)
    engine.pause(name)
    with pytest.raises(RequestError, match=r"is paused\. Resume it first"):
        next(stream)
    with pytest.raises(RequestError, match="has not ended"):
        engine.forget(name)
    engine.abort(name)


def test_not_in_the_middle_of_a_step(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[0], greedy(3))
    caught: list[Exception] = []

    def meddle(event: Any) -> None:
        if type(event).__name__ == "StepPlanned":
            for act in (engine.pause, engine.resume):
                try:
                    act(name)
                except StepInProgress as error:
                    caught.append(error)

    engine.bus.subscribe(meddle)
    engine.step()
    assert len(caught) == 2
    engine.run()


def test_a_checkpoint_remembers_who_was_paused(make_engine: MakeEngine, alone: Alone) -> None:
    expected = alone(PROMPTS[:2], greedy(12))
    engine = make_engine()
    names = [engine.add(prompt, greedy(12)) for prompt in PROMPTS[:2]]
    engine.run(3)
    engine.pause(names[0])
    state = engine.checkpoint()
    engine.abort(names[0])
    engine.restore(state)
    engine.run()
    assert len(engine.scheduler.paused) == 1
    engine.resume(names[0])
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


def test_the_settings_of_llm(checkpoint: Any) -> None:
    folder = checkpoint()
    for wrong, words in [
        ({"capacity": "all"}, "capacity"),
        ({"preemption": "swap"}, "host_cache_bytes"),
        ({"host_cache_bytes": -1}, "host_cache_bytes"),
        ({"host_cache_bytes": 7}, "host_cache_bytes"),
        ({"host_cache_bytes": None}, "host_cache_bytes"),
        ({"chunking": 3}, "chunking"),
        ({"max_prefill_tokens": 0}, "max_prefill_tokens"),
    ]:
        with pytest.raises(ConfigError, match=words):
            LLM(folder, num_blocks=8, **wrong)
    settings = {"num_blocks": 16, "block_size": 4, "host_cache_bytes": 1 << 20}
    with LLM(folder, preemption="swap", policy="fair_share", **settings) as llm:
        engine = llm.engine
        engine.add([1, 2, 3], greedy(4), tenant="a", request_id="x")
        assert engine.requests["x"].request.tenant == "a"
        with pytest.raises(RequestError, match="tenant"):
            engine.add([1], greedy(1), tenant=3)
        engine.run()
        assert engine.cache.blocks.host.num_slots > 16


def test_pausing_while_the_grammar_is_compiled(make_engine: MakeEngine) -> None:
    """It is paused once it is ready, and goes on, with its guide, when it is resumed."""
    guide = GuidedDecodingParams(regex="[ab]{1,8}")
    params = greedy(6, guided_decoding=guide, ignore_eos=False)
    engine = make_engine(guided=True)
    name = engine.add("def", params)
    engine.pause(name)
    engine.resume(name)
    engine.pause(name)
    for _ in range(2000):
        if engine.scheduler.paused:
            break
        engine.step()
    assert [s.request.request_id for s in engine.scheduler.paused] == [name]
    assert engine.output(name).outputs[0].token_ids == []
    engine.resume(name)
    engine.run()
    assert set(engine.output(name).outputs[0].text) <= set("ab")
    assert engine.output(name).outputs[0].text
