"""Ending a request by hand frees what it holds and touches nobody else."""

from __future__ import annotations

import pytest
from drive import Alone, MakeEngine, greedy
from tiny import random_prompts

from workbench.errors import RequestError, RequestFinished, UnknownRequest
from workbench.request import Status

PROMPTS = random_prompts(5, seed=80)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("prefix_reuse", [True, False])
def test_others_go_on_unchanged(
    make_engine: MakeEngine,
    alone: Alone,
    backend: str,
    device: str,
    steps: int,
    prefix_reuse: bool,
) -> None:
    prompts = [*PROMPTS, PROMPTS[2]]  # the last shares blocks with the one that is aborted
    expected = alone(prompts, greedy(14), device=device)
    engine = make_engine(
        backend=backend,
        device=device,
        block_size=4,
        max_batch_tokens=16,
        prefix_reuse=prefix_reuse,
    )
    names = [engine.add(prompt, greedy(14)) for prompt in prompts]
    engine.run(steps)
    made = engine.output(names[2]).outputs[0].token_ids
    output = engine.abort(names[2])
    engine.cache.check()
    assert 2 not in engine.cache.blocks.tables
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"
    assert output.outputs[0].token_ids == made == expected[2][: len(made)]
    assert output.metrics.finished is not None
    engine.run()
    for i in (0, 1, 3, 4, 5):
        assert engine.output(names[i]).outputs[0].token_ids == expected[i]


def test_a_running_request_gives_its_blocks_back_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add([1] * 50, greedy(9))
    engine.step()
    assert engine.cache.blocks.num_used == 4
    engine.abort(name)
    assert engine.cache.blocks.num_used == 0
    assert not engine.has_work
    assert not engine.step().plan


def test_twice_is_an_error(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name, other = engine.add([1, 2], greedy(9)), engine.add([3, 4], greedy(9))
    engine.step()
    engine.abort(name)
    with pytest.raises(RequestFinished, match=rf"'{name}': already finished \(abort\)"):
        engine.abort(name)
    with pytest.raises(UnknownRequest, match=r"'nobody': not a request .* Known: r0"):
        engine.abort("nobody")
    engine.run()
    with pytest.raises(RequestFinished, match=r"already finished \(length\)"):
        engine.abort(other)
    assert len(engine.output(other).outputs[0].token_ids) == 9


def test_forget(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add([1, 2], greedy(3))
    with pytest.raises(RequestError, match="has not ended"):
        engine.forget(name)
    engine.run()
    assert engine.forget(name).finished
    assert engine.requests == {}
    with pytest.raises(UnknownRequest, match="Known: none"):
        engine.forget(name)


def test_a_waiting_request_leaves_the_queue(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sequences=1)
    names = [engine.add([i + 1], greedy(2)) for i in range(3)]
    engine.step()
    assert engine.requests[names[1]].sequences[0].status is Status.WAITING
    engine.abort(names[1])
    tokens = [name for record in engine.run() for name, _, _ in record.tokens]
    assert tokens == [names[0], names[2], names[2]]
