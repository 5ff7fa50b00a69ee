"""Requests through adapters: each is what its merged model says, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import drawn, greedy
from peft_adapters import write_adapter
from tiny import random_prompts

from workbench.engine import Engine
from workbench.lora import merge, read_adapter
from workbench.models import DecoderLM
from workbench.ops import get_backend
from workbench.sampling_params import SamplingParams

MakeEngine = Callable[..., Engine]
NAMES = (
    "all linear",
    "patterns",
    "head",
    "embedding",
    "lora_bias",
    "saved head",
    "dora",
    "dora, some",
)
# What the rows of a batch go through; `None` is the base.
MIXED = ["a0", None, "a1", "a2", "a0:0.5", "a3", None, "a4", "a5", "a0:0.7+a1:-0.4", "a2:1.5"]
MIXED += ["a6", "a7:-0.5", "a6:0.5"]
BACKENDS = ["reference", "sdpa", "native"]


@pytest.fixture
def loaded(make_engine: MakeEngine, adapter_of: Callable[..., Path]) -> MakeEngine:
    """Build an engine with an adapter `a0`, `a1`, … in each of `NAMES`."""

    def make(**settings: Any) -> Engine:
        engine = make_engine(**settings)
        for i, name in enumerate(NAMES):
            engine.loras.load(f"a{i}", adapter_of(name, seed=i))
        return engine

    return make


@pytest.fixture(scope="module")
def _merged() -> dict[Any, Any]:
    return {}


@pytest.fixture
def merged(
    make_engine: MakeEngine,
    adapter_of: Callable[..., Path],
    model: DecoderLM,
    _merged: dict[Any, Any],
) -> Callable[..., list[int]]:
    """Return the tokens of a prompt over the model with what `lora` names merged in, alone."""

    def tokens(prompt: list[int], params: SamplingParams, lora: str | None) -> list[int]:
        key = tuple(prompt), params, lora
        if key not in _merged:
            factors = {}
            for part in (lora or "").split("+") if lora else []:
                name, _, factor = part.partition(":")
                number = int(name[1:])
                adapter = read_adapter(adapter_of(NAMES[number], seed=number), model)
                factors[adapter] = float(factor or 1)
            undo = merge(model, factors)
            engine = make_engine(backend="reference", prefix_reuse=False)
            _merged[key] = engine.generate([prompt], params)[0].outputs[0]
            undo()
        return _merged[key]

    return tokens


def check(engine: Engine, merged: Callable[..., Any], lora: list[str | None], params: Any) -> None:
    prompts = random_prompts(len(lora), seed=5)
    outputs = engine.generate(prompts, params, lora=lora)
    for prompt, uses, own, output in zip(prompts, lora, params, outputs, strict=True):
        expected = merged(prompt, own, uses)
        assert output.outputs[0].token_ids == expected.token_ids, uses
        for a, b in zip(output.outputs[0].logprobs or (), expected.logprobs or (), strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-5, rel=1e-5)


def all_greedy(count: int = len(MIXED), max_tokens: int = 12) -> list[SamplingParams]:
    return [greedy(max_tokens, logprobs=0) for _ in range(count)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_request_is_its_merged_model(
    loaded: MakeEngine, merged: Callable[..., Any], backend: str
) -> None:
    check(loaded(backend=backend), merged, MIXED, all_greedy())


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_tokens": 5, "max_sequences": 5},
        {"num_blocks": 20, "block_size": 4},
        {"prefix_reuse": False, "max_sequences": 2},
        {"backend": "native", "tape": False},
    ],
    ids=["chunks", "preemption", "two at once", "no tape"],
)
def test_however_it_is_scheduled(
    loaded: MakeEngine, merged: Callable[..., Any], settings: dict[str, Any]
) -> None:
    check(loaded(**settings), merged, MIXED, all_greedy())


@pytest.mark.parametrize("num_rows", [8, 13, 40])
def test_with_room_for_few_adapters(
    loaded: MakeEngine, merged: Callable[..., Any], num_rows: int
) -> None:
    """Ranks are 4, 7, 3, 3, 3, 2, 4 and 5: sequences wait for room, and all come to their end."""
    lora = [uses for uses in MIXED if uses is None or "+" not in uses] * 2
    engine = loaded(num_rows=num_rows)
    check(engine, merged, lora, all_greedy(len(lora), 6))
    assert engine.loras.slots.pool.num_rows == num_rows


def test_drawn_tokens_are_those_of_the_merged_model(
    loaded: MakeEngine, merged: Callable[..., Any]
) -> None:
    check(loaded(backend="native"), merged, MIXED, [drawn(i, 12) for i in range(len(MIXED))])


def test_decodes_are_replayed_and_only_the_embedding_keeps_them_from_it(
    loaded: MakeEngine,
) -> None:
    engine = loaded(backend="native")
    engine.generate(random_prompts(4, 1), greedy(12), lora=["a0", None, "a2", "a1:0.3"])
    tapes = engine.runner.tapes
    assert tapes is not None
    assert tapes.replays >= 10
    assert set(tapes.eager) == {"not every row decodes"}
    captures = tapes.captures
    engine.generate(random_prompts(4, 1), greedy(12), lora=["a0", "a6", None, "a6:0.3"])
    assert tapes.captures == captures + 1, "one for all, from the first gain on"
    engine.generate(random_prompts(4, 1), greedy(12), lora=["a0", None, "a2", "a1:0.3"])
    assert tapes.captures == captures + 1
    assert tapes.eager == {"not every row decodes": 3}
    engine.generate(random_prompts(2, 1), greedy(4), lora=["a3", None])
    assert tapes.eager["an adapter changes the embedding"] == 3
    engine.generate(random_prompts(1, 3), greedy(3), lora="a7")
    assert tapes.eager["an adapter changes the embedding"] == 5
    replays, engine.runner.backend = tapes.replays, get_backend("native")  # record anew
    engine.generate(random_prompts(2, 2), greedy(12), lora=["a0", "a1"])
    assert tapes.replays >= replays + 10, "one on the device keeps others from replays"


def test_a_tape_that_was_recorded_without_dora_takes_it(loaded: MakeEngine) -> None:
    engine, prompts = loaded(backend="native"), random_prompts(2, 1)
    expected = engine.generate(prompts, greedy(8), lora="a6")
    engine.runner.backend = get_backend("native")  # record anew
    engine.generate(prompts, greedy(8), lora="a0")
    found = engine.generate(prompts, greedy(8), lora="a6")
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dora_leaves_biases_as_large_as_they_are(
    make_engine: MakeEngine,
    checkpoint: Callable[..., Path],
    model_of: Callable[..., DecoderLM],
    tmp_path: Path,
    backend: str,
) -> None:
    """Trained ones too, times the request's factor."""
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 2, "bias": "all", "use_dora": True}
    folder = write_adapter(tmp_path / "a", checkpoint("qwen2"), 3, **settings)
    model, prompt, params = model_of("qwen2"), random_prompts(2, 3)[1], greedy(8, logprobs=0)
    undo = merge(model, {read_adapter(folder, model): 0.5})
    expected = make_engine("qwen2").generate([prompt], params)[0].outputs[0]
    undo()
    engine = make_engine("qwen2", backend=backend)
    engine.loras.load("a", folder)
    found = engine.generate([prompt], params, lora="a:0.5")[0].outputs[0]
    assert found.token_ids == expected.token_ids
    for a, b in zip(found.logprobs or (), expected.logprobs or (), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_an_adapter_keep_every_bit(
    loaded: MakeEngine, make_engine: MakeEngine, backend: str
) -> None:
    prompts = random_prompts(8, 7)
    params = SamplingParams(max_tokens=1, hidden_states=True, temperature=0)
    plain = make_engine(backend=backend, prefix_reuse=False).generate(prompts, params)
    lora = ["a0", None, "a3", None, "a6", None, "a7", None]
    mixed = loaded(backend=backend, prefix_reuse=False).generate(prompts, params, lora=lora)
    for uses, a, b in zip(lora, plain, mixed, strict=True):
        first, second = a.outputs[0].hidden_states, b.outputs[0].hidden_states
        assert first is not None
        assert second is not None
        assert torch.equal(first, second) == (uses is None)


def test_an_adapter_s_rows_do_not_depend_on_neighbours_bitwise(loaded: MakeEngine) -> None:
    """On the native backend no bit depends on who else is in the batch, nor on its order."""
    prompts = random_prompts(8, 8)
    params = SamplingParams(max_tokens=4, hidden_states=True, temperature=0, ignore_eos=True)
    lora = ["a0", "a1", "a0", None, "a0:0.5", "a5", "a6", "a6:0.5"]
    engine = loaded(backend="native", prefix_reuse=False)
    together = engine.generate(prompts, params, lora=lora)
    turned = engine.generate(prompts[::-1], params, lora=lora[::-1])[::-1]
    for prompt, uses, a, b in zip(prompts, lora, together, turned, strict=True):
        alone = engine.generate([prompt], params, lora=uses)[0]
        rows = [output.outputs[0].hidden_states for output in (a, b, alone)]
        assert all(row is not None and torch.equal(row, rows[0]) for row in rows), uses


def test_the_prefix_cache_never_mixes_adapters(loaded: MakeEngine) -> None:
    engine = loaded()
    prompt = random_prompts(1, 9)[0] * 0 + list(range(1, 60))
    cached = []
    for uses in (None, None, "a0", "a0", "a0:1.0", "a0:0.5", "a1", "a0+a1", "a1+a0", "a0:0"):
        output = engine.generate([prompt], greedy(2), lora=uses)[0]
        cached.append(output.metrics.num_cached_tokens > 0)
    assert cached == [False, True, False, True, True, False, False, False, True, True]


def test_a_reloaded_name_with_other_weights_starts_a_cache_of_its_own(
    make_engine: MakeEngine, adapter_of: Callable[..., Path]
) -> None:
    engine, prompt = make_engine(), list(range(1, 60))
    engine.loras.load("x", adapter_of(seed=0))
    first = engine.generate([prompt], greedy(4), lora="x")[0]
    engine.loras.unload("x")
    engine.loras.load("x", adapter_of(seed=1))
    second = engine.generate([prompt], greedy(4), lora="x")[0]
    assert second.metrics.num_cached_tokens == 0
    assert first.outputs[0].token_ids != second.outputs[0].token_ids


@pytest.fixture
def running(loaded: MakeEngine) -> Iterator[tuple[Engine, list[str]]]:
    """An engine in the middle of three requests: through `a0`, `a1` and none."""
    engine = loaded()
    prompts = random_prompts(3, 11)
    names = [
        engine.add(p, greedy(16), lora=u) for p, u in zip(prompts, ("a0", "a1", None), strict=True)
    ]
    for _ in range(5):
        engine.step()
    yield engine, names
    engine.run()


def tokens(engine: Engine, name: str) -> list[int]:
    return engine.output(name).outputs[0].token_ids


def test_time_travel_forks_and_saving(running: tuple[Engine, list[str]], tmp_path: Path) -> None:
    engine, names = running
    state = engine.checkpoint()
    twins = [engine.fork(name) for name in names]
    files = [engine.save(name, tmp_path / name) for name in names]
    engine.run()
    expected = [tokens(engine, name) for name in names]
    assert [tokens(engine, name) for name in twins] == expected
    saved = [engine.load(file, request_id=f"again-{file.name}") for file in files]
    engine.run()
    assert [tokens(engine, name) for name in saved] == expected
    engine.restore(state)
    engine.run()
    assert [tokens(engine, name) for name in names] == expected


def test_two_engines_over_one_model_have_adapters_of_their_own(
    make_engine: MakeEngine, adapter_of: Callable[..., Path]
) -> None:
    engines = [make_engine() for _ in range(2)]
    prompt = random_prompts(1, 2)[0]
    base = engines[0].generate([prompt], greedy(8))[0].outputs[0].token_ids
    for i, engine in enumerate(engines):
        engine.loras.load("x", adapter_of(seed=i))
    found = [e.generate([prompt], greedy(8), lora="x")[0].outputs[0].token_ids for e in engines]
    assert found[0] != found[1]
    again = [e.generate([prompt], greedy(8))[0].outputs[0].token_ids for e in engines]
    assert again == [base, base]
