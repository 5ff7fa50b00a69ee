"""Checkpoint, restore, save and load: what goes on from a state equals a run that never stopped."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drive import Alone, MakeEngine, drawn, greedy
from tiny import random_prompts

from workbench.engine import Engine
from workbench.errors import RequestError, StateError
from workbench.events import EngineRestored
from workbench.models import load_model
from workbench.sampling_params import SamplingParams
from workbench.scheduler.books import StepInProgress
from workbench.trace import Trace

PROMPTS = random_prompts(6, seed=17)
PARAMS = [
    greedy(20),
    drawn(4, 18, logprobs=2),
    drawn(5, 16, n=3),
    SamplingParams(beam_width=3, n=3, max_tokens=14, ignore_eos=True),
    drawn(9, 12, n=2, best_of=3),
    greedy(25, stop_token_ids=(3, 9)),
]


POINT = "class Point:\n    def __init__(self, x, y):\n"


def outputs(engine: Engine, names: list[str]) -> list[Any]:
    return [[(o.token_ids, o.finish_reason) for o in engine.output(n).outputs] for n in names]


@pytest.fixture
def expected(make_engine: MakeEngine) -> list[Any]:
    engine = make_engine()
    names = [engine.add(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
    engine.run()
    return outputs(engine, names)


@pytest.mark.parametrize(
    "settings",
    [{}, {"block_size": 4}, {"prefix_reuse": False}, {"max_batch_tokens": 7, "max_sequences": 5}],
    ids=str,
)
def test_a_restored_engine_goes_on_as_if_nothing_had_happened(
    make_engine: MakeEngine, expected: list[Any], settings: dict[str, Any]
) -> None:
    engine = make_engine(**settings)
    names = [engine.add(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
    states = [engine.checkpoint()]
    while engine.has_work:
        engine.step()
        states.append(engine.checkpoint())
    assert outputs(engine, names) == expected
    source = random.Random(3)
    for state in source.sample(states, 6):
        engine.restore(state)
        if source.random() < 0.5:
            engine.run(source.randint(1, 4))
            engine.add(PROMPTS[0], greedy(5), request_id="later")
            engine.restore(state)
        assert "later" not in engine.requests
        engine.run()
        assert outputs(engine, names) == expected
        engine.cache.check()


def test_a_checkpoint_is_not_touched_by_what_follows(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[0], drawn(1, 12, logprobs=1))
    engine.run(4)
    state = engine.checkpoint()
    before = engine.output(name)
    engine.run()
    for _ in range(3):
        engine.restore(state)
        again = engine.output(name)
        assert again.outputs == before.outputs
        assert again.metrics.first_token == before.metrics.first_token
        engine.run(3)
    engine.abort(name)
    assert "output tokens=[4]" in repr(state.requests[0])


def test_restoring_computes_little_again(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=4)
    engine.add(list(range(1, 50)), greedy(20))
    engine.run(10)
    state = engine.checkpoint()
    engine.run(3)
    with Trace.record(engine) as trace:
        engine.restore(state)
        assert engine.step().plan.num_tokens <= 4, "only what is not in a full block"
    [event] = trace.of(EngineRestored)
    assert event.to_step == state.step
    engine.run()


def test_saved_requests_go_on_in_another_engine(
    make_engine: MakeEngine, expected: list[Any], tmp_path: Path
) -> None:
    first = make_engine()
    names = [first.add(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
    for steps in (0, 1, 6, 30):
        first.run(steps)
        second = make_engine(block_size=4)
        second.add([1, 2, 3], greedy(9))
        for name in names:
            path = first.save(name, tmp_path / f"{name}.json")
            second.load(path, request_id=f"again-{name}")
        second.run()
        assert outputs(second, [f"again-{name}" for name in names]) == expected
    first.run()


def test_a_saved_request_goes_on_in_another_process(
    make_engine: MakeEngine, alone: Alone, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[1], drawn(8, 20))
    engine.run(7)
    path = engine.save(name, tmp_path / "request.json")
    engine.abort(name)
    program = (
        "import sys, workbench as wb\n"
        "llm = wb.LLM(sys.argv[1], device='cpu', dtype='float32', num_blocks=64)\n"
        "name = llm.engine.load(sys.argv[2])\n"
        "llm.engine.run()\n"
        "print(llm.engine.output(name).outputs[0].token_ids)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint("llama")), str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert [json.loads(done.stdout.splitlines()[-1])] == alone([PROMPTS[1]], drawn(8, 20))


def test_stop_strings_and_time_survive(tmp_path: Path) -> None:
    import workbench as wb

    with wb.LLM("tinypy", device="cpu", dtype="float32", num_blocks=64) as llm:
        params = SamplingParams(max_tokens=60, temperature=0, stop=["self.y", "raise"])
        whole = llm.generate(POINT, params, progress=False)[0].outputs[0]
        engine = llm.engine
        name = engine.add(POINT, params, timeout=1000.0)
        engine.run(5)
        path = engine.save(name, tmp_path / "r.json")
        engine.discard([name])
        engine.load(path)
        record = engine.requests[name]
        assert 990 < record.request.deadline - record.metrics.arrival <= 1001
        engine.run()
        assert engine.output(name).outputs[0].text == whole.text
        assert whole.finish_reason == "stop"


def test_files_that_cannot_be_loaded(
    make_engine: MakeEngine, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    engine = make_engine()
    name = engine.add(PROMPTS[0], greedy(30))
    engine.run(3)
    path = engine.save(name, tmp_path / "request.json")
    good = path.read_text()
    with pytest.raises(RequestError, match="already in use"):
        engine.load(path)
    content = json.loads(good)
    for text, message in (
        (good[:100], "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "is \\(None, None\\)"),
        (json.dumps({**content, "version": 9}), "9"),
        (json.dumps({**content, "model": {"vocab_size": 3}}), "another model"),
        (json.dumps({**content, "sequences": [{}]}), "a field is wrong"),
        (json.dumps({**content, "request": {"params": {"top_p": 7}}}), "a field is wrong"),
    ):
        path.write_text(text)
        with pytest.raises(StateError, match=message):
            engine.load(path, request_id="new")
    with pytest.raises(StateError, match="cannot be read"):
        engine.load(tmp_path / "none.json")
    path.write_text(good)
    small = make_engine(num_blocks=2, block_size=4)
    with pytest.raises(RequestError, match="the whole cache has 2"):
        small.load(path)
    qwen = make_engine(load_model(checkpoint("qwen2"), device="cpu", dtype="float32"))
    with pytest.raises(StateError, match="another model"):
        qwen.load(path)
    coded = engine.add(PROMPTS[0], greedy(4, logits_processors=[lambda _, logits: logits]))
    with pytest.raises(RequestError, match="are code, not data"):
        engine.save(coded, path)
    assert set(engine.requests) == {name, coded}
    engine.run()


def test_only_between_steps_and_only_checkpoints(make_engine: MakeEngine) -> None:
    engine = make_engine()
    refused: list[StepInProgress] = []

    def meddle(_: Any) -> None:
        if engine.scheduler.books.busy:
            for action in (engine.checkpoint, lambda: engine.restore(state)):
                try:
                    action()
                except StepInProgress as error:
                    refused.append(error)

    state = engine.checkpoint()
    engine.bus.subscribe(meddle)
    engine.generate([PROMPTS[0]], greedy(3))
    assert refused
    with pytest.raises(RequestError, match="is no checkpoint"):
        engine.restore({"step": 1})
