"""Decodes replayed from CUDA graphs are the eager decodes, bit for bit, whatever happens between.

Every invariant of this folder also runs with graphs on: the `triton` backend on a GPU has them.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drafting import RandomTrees
from drive import MakeEngine, drawn, greedy, tokens_of
from tiny import random_prompts

import workbench as wb
from workbench.engine import Engine
from workbench.layers import probe
from workbench.models import DecoderLM, load_model
from workbench.ops import TritonBackend
from workbench.results import SampledTokens
from workbench.run import DecodeGraphs

pytestmark = pytest.mark.gpu


def graphs_of(engine: Engine) -> DecodeGraphs:
    assert engine.runner.graphs is not None
    return engine.runner.graphs


@pytest.fixture
def make(make_engine: MakeEngine) -> MakeEngine:
    """Return `make_engine` for the GPU and the backend that can be captured."""

    def make(model: Any = "llama", **settings: Any) -> Engine:
        return make_engine(model, **{"device": "cuda", "backend": "triton", **settings})

    return make


@pytest.fixture
def own_model(checkpoint: Callable[[str], Path]) -> DecoderLM:
    """A model that a test may change."""
    return load_model(checkpoint("llama"), device="cuda", dtype="float32")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_a_replay_is_the_eager_pass_bit_for_bit(make: MakeEngine, family: str, count: int) -> None:
    """Of the same padded inputs always; of the plain pass where nothing is padded."""
    engine = make(family, cuda_graphs=[1, 4, 8])
    graphs, compared = graphs_of(engine), 0
    for prompt in random_prompts(count, seed=70, longest=90):
        engine.add(prompt, greedy(24))
    with torch.inference_mode():
        while engine.has_work:
            plan = engine.scheduler.schedule()
            logits = engine.runner.run(plan).logits
            assert logits is not None
            if not graphs.why_eager(plan, engine.runner.backend):
                hidden, ctx = graphs.run_padded(plan, engine.runner.backend)
                assert torch.equal(engine.model.logits(hidden, ctx), logits)
                plain = engine.runner._run_eagerly(plan).logits
                if count in graphs.sizes:
                    assert torch.equal(plain, logits)
                else:
                    torch.testing.assert_close(plain, logits, rtol=1e-4, atol=1e-4)
                compared += 1
            rows = [plan.sequences[row] for row in plan.sampled]
            engine.scheduler.commit(plan, engine.sampler(logits, rows))
    assert compared > 20
    assert graphs.replays == compared


@pytest.mark.parametrize("chain", [True, False])
def test_drafts_are_replayed_bit_for_bit(make: MakeEngine, chain: bool) -> None:
    """Of the same padded inputs; rows and tokens are padded to other numbers all the time."""
    engine = make()
    engine.swap(proposer=RandomTrees(2, chain=chain, largest=12))
    engine.runner.captured = ("", "layers.1")
    graphs, compared = graphs_of(engine), 0
    for prompt in random_prompts(6, seed=75, longest=90):
        engine.add(prompt, greedy(40))
    with torch.inference_mode():
        while engine.has_work:
            plan = engine.scheduler.schedule(engine.speculator.propose().drafts)
            output = engine.runner.run(plan)
            assert output.logits is not None
            if plan.drafts and not graphs.why_eager(plan, engine.runner.backend):
                states = {point: rows.clone() for point, rows in output.states.items()}
                hidden, ctx = graphs.run_padded(plan, engine.runner.backend)
                assert torch.equal(engine.model.logits(hidden, ctx), output.logits)
                for point, rows in states.items():
                    assert torch.equal(rows, graphs.states[point])
                eager = engine.runner._run_eagerly(plan).logits
                torch.testing.assert_close(eager, output.logits, rtol=1e-4, atol=1e-4)
                compared += 1
            sampled = engine.speculator.draw(plan, output, engine.sampler).wait()
            engine.scheduler.commit(plan, sampled)
    assert compared > 15
    assert graphs.replays >= compared


def test_mixed_replays_are_the_padded_pass_bit_for_bit(make: MakeEngine) -> None:
    """Prompts keep coming, in chunks, beside what decodes."""
    engine = make(max_batch_tokens=48, max_sequences=12)
    graphs, mixed = graphs_of(engine), 0
    prompts = random_prompts(24, seed=77, longest=90)
    with torch.inference_mode():
        while engine.has_work or prompts:
            if prompts:
                engine.add(prompts.pop(), greedy(8))
            plan = engine.scheduler.schedule()
            before = graphs.replays
            logits = engine.runner.run(plan).logits
            if graphs.replays > before and plan.num_decodes < len(plan.sequences):
                hidden, ctx = graphs.run_padded(plan, engine.runner.backend)
                if logits is not None:
                    assert torch.equal(engine.model.logits(hidden, ctx), logits)
                    plain = engine.runner._run_eagerly(plan).logits
                    torch.testing.assert_close(plain, logits, rtol=1e-4, atol=1e-4)
                mixed += 1
            rows = [plan.sequences[row] for row in plan.sampled]
            sampled = SampledTokens([]) if logits is None else engine.sampler(logits, rows)
            engine.scheduler.commit(plan, sampled)
    assert mixed > 10


def test_mixed_replays_make_the_same_tokens(make: MakeEngine) -> None:
    prompts = random_prompts(40, seed=78, longest=120)
    params = [greedy(4 + i) if i % 2 else drawn(i, 4 + i) for i in range(40)]
    settings: dict[str, Any] = {"max_sequences": 12, "max_batch_tokens": 96}
    plain, fast = (make(cuda_graphs=choice, **settings) for choice in (False, True))
    assert tokens_of(plain, prompts, params) == tokens_of(fast, prompts, params)
    assert sum(graphs_of(fast).eager.values()) < len(prompts)


def test_tokens_do_not_depend_on_graphs(make: MakeEngine) -> None:
    """Many lengths: batches shrink through all sizes, contexts grow over blocks, prompts arrive."""
    prompts = random_prompts(24, seed=71, longest=90)
    params = [greedy(8 + 3 * i) if i % 2 else drawn(i, 6 + 4 * i) for i in range(24)]
    settings: dict[str, Any] = {"max_sequences": 9, "max_batch_tokens": 40}
    plain, fast = (make(cuda_graphs=choice, **settings) for choice in (False, True))
    assert tokens_of(plain, prompts, params) == tokens_of(fast, prompts, params)
    graphs = graphs_of(fast)
    assert graphs.replays > graphs.captures > 3
    assert "prompts of a size that is seldom" in graphs.eager
    assert "replays" in fast.runner.describe()["mode"]


def test_preemption_and_forks(make: MakeEngine) -> None:
    prompts = random_prompts(6, seed=72, longest=60)
    params = [drawn(i, 40, n=2) if i % 3 == 0 else drawn(i, 40) for i in range(6)]
    settings: dict[str, Any] = {"num_blocks": 24, "block_size": 8, "max_batch_tokens": 64}
    plain, fast = (make(cuda_graphs=choice, **settings) for choice in (False, True))
    outputs = []
    for engine in (plain, fast):
        done = engine.generate(prompts, params)
        outputs.append([[c.token_ids for c in output.outputs] for output in done])
    assert outputs[0] == outputs[1]
    assert graphs_of(fast).replays > 20


def test_empty_rows_write_nowhere(make: MakeEngine) -> None:
    engine = make(cuda_graphs=[8], num_blocks=32)
    for prompt in random_prompts(3, seed=73):
        engine.add(prompt, greedy(12))
    for _ in range(3):
        engine.step()
    before = engine.cache.tensor.clone()
    plan = engine.step().plan
    changed = (before != engine.cache.tensor) & ~(before.isnan() & engine.cache.tensor.isnan())
    slots = changed.any(dim=(0, 1, 4, 5)).flatten().nonzero().flatten().tolist()
    size = engine.cache.block_size
    tables = engine.cache.blocks.tables
    expected = [
        tables[s.sequence_id].block_ids[start // size] * size + start % size
        for s, start in zip(plan.sequences, plan.starts, strict=True)
    ]
    assert sorted(slots) == sorted(expected)
    assert graphs_of(engine).replays >= 3
    engine.discard(list(engine.requests))


def test_swapping_backends_between_steps(make: MakeEngine) -> None:
    prompts = random_prompts(5, seed=74)
    expected = tokens_of(make(cuda_graphs=False), prompts, greedy(20))
    engine = make(max_batch_tokens=32, max_sequences=4)
    graphs = graphs_of(engine)
    ids = [engine.add(prompt, greedy(20)) for prompt in prompts]
    while engine.has_work:
        for name in ("triton", "sdpa", "triton", "reference"):
            engine.swap(backend=name)
            engine.step()
            engine.step()
    assert [engine.output(i).outputs[0].token_ids for i in ids] == expected
    assert graphs.replays > 10
    assert "the sdpa backend cannot be captured" in graphs.eager


def test_a_replaced_kernel_is_captured_anew(make: MakeEngine) -> None:
    engine = make()
    backend, graphs = engine.runner.backend, graphs_of(engine)
    assert isinstance(backend, TritonBackend)
    engine.add([1, 2, 3], greedy(12))
    for _ in range(4):
        engine.step()
    captures, original = graphs.captures, backend.kernels["silu_mul"]
    called = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(original, name)

    engine.swap(kernel="prefill_attention")  # no decode has it
    engine.step()
    assert graphs.captures == captures
    engine.swap(kernel=Counting())  # type: ignore[arg-type]
    engine.step()
    assert graphs.captures == captures + 1
    assert called
    engine.run()


def test_weights_changed_in_place_and_replaced(make: MakeEngine, own_model: Any) -> None:
    """In place a graph sees by itself; a replaced tensor or module is noticed."""
    prompt = random_prompts(1, seed=75)[0]
    engines = [make(own_model, cuda_graphs=choice) for choice in (False, True)]
    for engine in engines:
        engine.add(prompt, greedy(40))

    def steps(count: int = 4) -> None:
        for _ in range(count):
            plain, fast = (engine.step().tokens for engine in engines)
            assert [t.token_id for t in plain] == [t.token_id for t in fast]

    graphs = graphs_of(engines[1])
    steps()
    captures = graphs.captures
    own_model.layers[0].mlp.down_proj.weight.mul_(-3)
    steps()
    assert graphs.captures == captures
    own_model.layers[1].mlp.down_proj.weight.data = torch.randn(64, 96, device="cuda")
    steps()
    assert graphs.captures == captures + 1
    other = torch.nn.Parameter(torch.randn(64, 96, device="cuda"), requires_grad=False)
    own_model.layers[1].mlp.down_proj.weight = other
    steps()
    assert graphs.captures == captures + 2
    with probe(own_model, {"layers.0": lambda stream: stream * 2}):
        replays = graphs.replays
        steps()
        assert graphs.replays == replays
    steps()
    for engine in engines:
        engine.discard(list(engine.requests))


def test_two_engines_replay_in_turn(make: MakeEngine) -> None:
    prompts = random_prompts(4, seed=76)
    expected = tokens_of(make(cuda_graphs=False), prompts, greedy(16))
    engines = [make(), make()]
    ids = [[engine.add(prompt, greedy(16)) for prompt in prompts] for engine in engines]
    while any(engine.has_work for engine in engines):
        for engine in engines:
            engine.step()
    for engine, own in zip(engines, ids, strict=True):
        assert [engine.output(i).outputs[0].token_ids for i in own] == expected


def test_a_model_that_cannot_be_captured(make: MakeEngine, own_model: Any) -> None:
    """`auto` says so and runs eagerly; who insists gets the error, and may go on without."""
    prompts = random_prompts(3, seed=77)
    expected = tokens_of(make(own_model, cuda_graphs=False), prompts, greedy(8))
    mlp = own_model.layers[0].mlp
    forward = mlp.forward

    def waiting(x: Any, ctx: Any) -> Any:
        x.sum().item()  # waits for the device
        return forward(x, ctx)

    mlp.forward = waiting
    auto = make(own_model)
    with pytest.warns(UserWarning, match="no CUDA graphs: a capture failed"):
        assert tokens_of(auto, prompts, greedy(8)) == expected
    assert graphs_of(auto).replays == 0
    del mlp.forward
    graphs_of(auto).clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokens_of(auto, prompts, greedy(8)) == expected
    assert graphs_of(auto).replays > 0
    mlp.forward = waiting
    strict = make(own_model, cuda_graphs=True)
    with pytest.raises(RuntimeError, match="captur"):
        tokens_of(strict, prompts, greedy(8))
    del mlp.forward


def test_close_frees_graphs_and_buffers(checkpoint: Callable[[str], Path]) -> None:
    def used() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    def work() -> None:
        llm = wb.LLM(checkpoint("llama"), device="cuda", num_blocks=512, backend="triton")
        llm.generate([[5] * 20] * 9, greedy(12), progress=False)
        assert graphs_of(llm.engine).captures
        llm.close()

    work()  # cuBLAS keeps its workspace, and kernels their code
    before = used()
    for _ in range(3):
        work()
    assert used() <= before + (2 << 20)
