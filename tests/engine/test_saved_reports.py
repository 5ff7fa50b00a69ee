"""What requests bring and keep besides tokens goes through checkpoints and files unharmed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import MakeEngine, drawn, greedy
from tiny import random_prompts
from torch import Tensor

from workbench.engine import Engine
from workbench.errors import RequestError, StateError
from workbench.models import load_model
from workbench.request import RequestOutput
from workbench.sampling_params import SamplingParams

KEEP: dict[str, Any] = {
    "hidden_states": True,
    "activations": ("layers.0", "layers.1.mlp"),
    "prompt_logprobs": 2,
}
ROWS = 0.05 * torch.randn(21, 64, generator=torch.Generator().manual_seed(5))
PROMPTS: list[Any] = [*random_prompts(2, seed=150, longest=30), ROWS, [5, ROWS[:9], 6, 7, ROWS[3:]]]
PARAMS = [
    greedy(12, **KEEP),
    drawn(4, 10, n=3, **KEEP),
    drawn(6, 12, hidden_states=True),
    SamplingParams(beam_width=3, n=2, max_tokens=9, ignore_eos=True, **KEEP),
]


def start(engine: Engine) -> list[str]:
    """Add every request; return their ids."""
    return [engine.add(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]


def assert_same(given: RequestOutput, expected: RequestOutput) -> None:
    """Fail unless two outputs report the same, up to float32's rounding."""
    assert (given.prompt_logprobs is None) == (expected.prompt_logprobs is None)
    scores = zip(given.prompt_logprobs or [], expected.prompt_logprobs or [], strict=True)
    for one, other in scores:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.token_id == other.token_id
            assert one.logprob == pytest.approx(other.logprob, abs=2e-4)
    for mine, theirs in zip(given.outputs, expected.outputs, strict=True):
        assert mine.token_ids == theirs.token_ids
        close(mine.hidden_states, theirs.hidden_states)
        assert (mine.activations or {}).keys() == (theirs.activations or {}).keys()
        for point, rows in (mine.activations or {}).items():
            close(rows, (theirs.activations or {})[point])
            assert len(rows) == len(given.prompt_token_ids) + len(mine.token_ids) - 1


def close(given: Tensor | None, expected: Tensor | None) -> None:
    """Fail unless two tensors are equal up to rounding, or both missing."""
    assert (given is None) == (expected is None)
    if given is not None and expected is not None:
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=2e-4)


@pytest.fixture
def expected(make_engine: MakeEngine) -> list[RequestOutput]:
    """Return the outputs of a run that never stopped."""
    return make_engine().generate(PROMPTS, PARAMS)


@pytest.mark.parametrize("settings", [{}, {"max_batch_tokens": 9, "max_sequences": 4}], ids=str)
def test_restored(
    make_engine: MakeEngine, expected: list[RequestOutput], settings: dict[str, Any]
) -> None:
    engine = make_engine(block_size=4, **settings)
    names = start(engine)
    states = []
    while engine.has_work:
        states.append(engine.checkpoint())
        engine.step()
    for state in (states[0], states[2], states[-1], states[len(states) // 2]):
        for steps in (3, None):
            engine.restore(state)
            engine.run(steps)
        for name, output in zip(names, expected, strict=True):
            assert_same(engine.output(name), output)


def test_restoring_computes_little_again(make_engine: MakeEngine) -> None:
    """What is known of cached tokens need not be computed a second time."""
    engine = make_engine(block_size=4)
    engine.add(list(range(1, 50)), greedy(20, **KEEP))
    engine.run(10)
    state = engine.checkpoint()
    engine.run(3)
    engine.restore(state)
    assert engine.step().plan.num_tokens <= 4
    engine.run()


def test_loaded_in_another_engine(
    make_engine: MakeEngine, expected: list[RequestOutput], tmp_path: Path
) -> None:
    first = make_engine(max_batch_tokens=20, max_sequences=9)
    names = start(first)
    for steps in (0, 1, 2, 7, None):
        first.run(steps)
        second = make_engine(block_size=4)
        for name, output in zip(names, expected, strict=True):
            second.load(first.save(name, tmp_path / f"{name}.json"))
            second.run()
            assert_same(second.output(name), output)


def test_into_a_model_of_another_dtype(
    make_engine: MakeEngine, checkpoint: Any, tmp_path: Path
) -> None:
    first = make_engine()
    name = first.add(ROWS, greedy(6))
    first.step()
    path = first.save(name, tmp_path / "r.json")
    first.run()
    half = make_engine(load_model(checkpoint("llama"), device="cpu", dtype="bfloat16"))
    half.load(path)
    half.run()
    assert len(half.output(name).outputs[0].token_ids) == 6


def test_damaged_files(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    name = engine.add([5, ROWS], greedy(6, **KEEP))
    engine.run(2)
    path = engine.save(name, tmp_path / "r.json")
    good = path.read_text()

    def damaged(*place: Any, value: Any) -> str:
        content = json.loads(good)
        *above, last = place
        target = content
        for key in above:
            target = target[key]
        target[last] = value
        return json.dumps(content)

    rows = json.loads(good)["request"]["embeds"]["rows"]
    layer = ("sequences", 0, "activations", "layers.0")
    state_errors = [
        damaged("request", "embeds", "rows", value={**rows, "shape": [20, 64]}),
        damaged("request", "embeds", "rows", value={**rows, "shape": [-21, -64]}),
        damaged("request", "embeds", "rows", value={**rows, "dtype": "int8"}),
        damaged("request", "embeds", "rows", value={**rows, "data": "?"}),
        damaged("request", "embeds", "positions", value=None),
        damaged("sequences", 0, "prompt_logprobs", value=None),
        damaged("sequences", 0, "prompt_logprobs", value=[]),
        damaged("sequences", 0, "prompt_logprobs", value=[None] * 23),
        damaged("sequences", 0, "activations", value=None),
        damaged("sequences", 0, "activations", value=[1]),
        damaged("sequences", 0, "activations", value={}),
        damaged(*layer, value=None),
        damaged(*layer, value={}),
        damaged(*layer, value={**rows, "dtype": "float64", "shape": [42, 16]}),
        damaged("sequences", 0, "token_ids", value=[5]),
    ]
    for text in state_errors:
        path.write_text(text)
        with pytest.raises(StateError, match="a field is wrong"):
            engine.load(path, request_id="new")
    positions = list(range(1, 22))
    request_errors = {
        "no places of 21 embeddings": damaged(
            "request", "embeds", "positions", value=positions[1:]
        ),
        "no places": damaged("request", "embeds", "positions", value=[*positions[:-1], 22]),
        r"are \[tokens, 64\]": damaged(
            "request", "embeds", "rows", value={**rows, "shape": [42, 32]}
        ),
    }
    for message, text in request_errors.items():
        path.write_text(text)
        with pytest.raises(RequestError, match=message):
            engine.load(path, request_id="new")
    assert list(engine.requests) == [name]
    engine.run()
