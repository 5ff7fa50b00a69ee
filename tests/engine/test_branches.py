"""`n`, `best_of`, `fork`: each branch equals a fresh run, and shares what both have computed."""

from __future__ import annotations

import pytest
from drive import Alone, MakeEngine, drawn, greedy
from tiny import random_prompts

from workbench import events
from workbench.engine import Engine
from workbench.errors import RequestError, RequestFinished
from workbench.request import Status
from workbench.sampling_params import SamplingParams
from workbench.trace import Trace

PROMPTS = random_prompts(5, seed=81)


def branch_tokens(engine: Engine, name: str) -> list[list[int]]:
    return [output.token_ids for output in engine.output(name).outputs]


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_branch_i_is_the_run_of_seed_plus_i(
    make_engine: MakeEngine, alone: Alone, block_size: int
) -> None:
    engine = make_engine(block_size=block_size, num_blocks=1600 // block_size)
    for prompt in PROMPTS:
        [output] = engine.generate([prompt], drawn(40, n=4))
        expected = alone([prompt] * 4, [drawn(40 + i) for i in range(4)])
        assert [o.token_ids for o in output.outputs] == expected
        assert [o.index for o in output.outputs] == [0, 1, 2, 3]


def test_branches_share_the_prompts_blocks(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=4)
    with Trace.record(engine) as trace:
        engine.generate([list(range(1, 31))], drawn(3, 4, n=5))
    shared = trace.of(events.BlockShared)
    assert len(shared) == 4 * 8, "four branches took a reference on each of the prompt's 8 blocks"
    assert trace.of(events.StepPlanned)[1].rows[1:] == tuple((i, 29, 1) for i in range(1, 5))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_sequences": 2},
        {"num_blocks": 14, "block_size": 4},
        {"max_batch_tokens": 3, "max_sequences": 3},
        {"prefix_reuse": False, "max_sequences": 1},
    ],
    ids=str,
)
def test_branches_in_tight_places(
    make_engine: MakeEngine, alone: Alone, settings: dict[str, int]
) -> None:
    engine = make_engine(**settings)
    params = [drawn(7, 10, n=3), drawn(20, 12, n=4), greedy(9)]
    outputs = engine.generate(PROMPTS[:3], params)
    for prompt, own, output in zip(PROMPTS, params, outputs, strict=False):
        seeds = [drawn(own.seed + i, own.max_tokens) for i in range(own.n)] if own.seed else [own]
        assert [o.token_ids for o in output.outputs] == alone([prompt] * len(seeds), seeds)


def test_best_of_returns_the_likeliest_first(make_engine: MakeEngine) -> None:
    engine = make_engine()
    [every] = engine.generate([PROMPTS[0]], drawn(5, n=6, logprobs=0))
    [best] = engine.generate([PROMPTS[0]], drawn(5, n=2, best_of=6))
    ranked = sorted(every.outputs, key=lambda output: output.cumulative_logprob, reverse=True)
    assert [o.token_ids for o in best.outputs] == [o.token_ids for o in ranked[:2]]
    assert [o.logprobs for o in best.outputs] == [None, None], "nobody asked for them"


def test_one_token_each(make_engine: MakeEngine, alone: Alone) -> None:
    [output] = make_engine().generate([PROMPTS[1]], drawn(9, 1, n=3))
    expected = alone([PROMPTS[1]] * 3, [drawn(9 + i, 1) for i in range(3)])
    assert [o.token_ids for o in output.outputs] == expected


def test_aborting_ends_every_branch_and_those_to_come(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch_tokens=8, max_sequences=4)
    name = engine.add(list(range(1, 20)), drawn(1, n=4))
    engine.step()
    assert not engine.abort(name).outputs[0].token_ids, "aborted before there were branches"
    name = engine.add(list(range(1, 20)), drawn(1, n=4))
    engine.run(5)
    assert {o.finish_reason for o in engine.abort(name).outputs} == {"abort"}
    assert len(branch_tokens(engine, name)) == 4


def test_a_twin_goes_on_like_the_original(make_engine: MakeEngine, alone: Alone) -> None:
    engine = make_engine(block_size=4)
    each = [greedy(), drawn(2), drawn(3), greedy(), drawn(4)]
    for prompt, params in zip(PROMPTS, each, strict=True):
        name = engine.add(prompt, params)
        engine.run(6)
        twin = engine.fork(name)
        again = engine.fork(twin, new_id=f"again-{name}")
        engine.run()
        [expected] = alone([prompt], params)
        assert branch_tokens(engine, name) == [expected]
        assert branch_tokens(engine, twin) == branch_tokens(engine, again) == [expected]


def test_a_twin_with_other_parameters_equals_a_fresh_run(
    make_engine: MakeEngine, alone: Alone
) -> None:
    engine = make_engine(block_size=4)
    name = engine.add(PROMPTS[0], drawn(6))
    engine.run(8)
    made = branch_tokens(engine, name)[0]
    twin = engine.fork(name, greedy(30))
    three = engine.fork(name, drawn(11, 20, n=3))
    engine.run()
    [rest] = alone([[*PROMPTS[0], *made]], greedy(30 - len(made)))
    assert branch_tokens(engine, twin) == [made + rest]
    tokens = branch_tokens(engine, three)
    assert len(tokens) == 3
    for number, own in enumerate(tokens):
        single = engine.add(PROMPTS[0], drawn(6))
        engine.run(8)
        alike = engine.fork(single, drawn(11 + number, 20))
        engine.abort(single)
        engine.run()
        assert branch_tokens(engine, alike) == [own]


def test_a_twin_without_a_place_waits(make_engine: MakeEngine, alone: Alone) -> None:
    engine = make_engine(max_sequences=1)
    name = engine.add(PROMPTS[2], greedy(20))
    engine.run(5)
    twin = engine.fork(name)
    assert engine.requests[twin].sequences[0].status is Status.WAITING
    engine.run()
    assert (
        branch_tokens(engine, twin)
        == branch_tokens(engine, name)
        == alone([PROMPTS[2]], greedy(20))
    )


def test_forks_that_cannot_be(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[0], greedy(10))
    engine.run(6)
    for settings, message in (
        ({"params": greedy(4)}, "max_tokens=4: the request has made 6 already"),
        ({"branch": 1}, "branch=1: no such branch. The request has 1"),
        ({"params": SamplingParams(beam_width=2)}, "beams cannot fork"),
        ({"params": "greedy"}, "is not a SamplingParams"),
        ({"new_id": name}, "already in use"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.fork(name, **settings)
    engine.run()
    with pytest.raises(RequestFinished):
        engine.fork(name)
    assert list(engine.requests) == [name]


def test_a_request_out_of_time_keeps_what_it_made(
    make_engine: MakeEngine, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    late = engine.add(PROMPTS[0], greedy(20), timeout=500.0)
    never = engine.add(PROMPTS[1], drawn(4, 20, n=2), timeout=500.0)
    other = engine.add(PROMPTS[2], greedy(20))
    engine.run(4)
    now = max(engine.requests[name].request.deadline for name in (late, never))
    monkeypatch.setattr("workbench.scheduler.queues.time.monotonic", lambda: now + 1.0)
    ended = engine.step().finished
    assert {s.request.request_id for s in ended} == {late, never}
    engine.run()
    assert {o.finish_reason for o in engine.output(never).outputs} == {"timeout"}
    [expected, unhurried] = alone([PROMPTS[0], PROMPTS[2]], greedy(20))
    assert branch_tokens(engine, late) == [expected[:4]]
    assert branch_tokens(engine, other) == [unhurried]
    for timeout in (0, -1, float("inf"), "soon", True):
        with pytest.raises(RequestError, match="timeout"):
            engine.add([1, 2], timeout=timeout)


def test_echo_and_truncation(make_engine: MakeEngine, alone: Alone) -> None:
    engine = make_engine()
    [output] = engine.generate([PROMPTS[3]], greedy(6, truncate_prompt_tokens=3, echo=True))
    assert output.prompt_token_ids == PROMPTS[3][-3:]
    assert [output.outputs[0].token_ids] == alone([PROMPTS[3][-3:]], greedy(6))
