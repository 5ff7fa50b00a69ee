"""The fast backends compute what the plain one does, and may be swapped in mid-flight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drive import MakeEngine, drawn, greedy, tokens_of
from tiny import random_prompts

from workbench.engine import Engine
from workbench.models import load_model
from workbench.request import Sequence
from workbench.results import SampledTokens


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_every_backend_equals_reference(
    make_engine: MakeEngine, backend: str, device: str, family: str
) -> None:
    prompts = random_prompts(8, seed=40, longest=90)
    params = [greedy(24) if i % 2 else drawn(i) for i in range(8)]
    plain, fast = (
        make_engine(family, backend=name, device=device, max_batch_tokens=40)
        for name in ("reference", backend)
    )
    assert tokens_of(plain, prompts, params) == tokens_of(fast, prompts, params)


def test_triton_equals_reference(make_engine: MakeEngine, device: str) -> None:
    """On a CPU in Triton's interpreter, so few tokens: chunks, decodes and a full batch of both."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels run on the GPU here: lifted by TRITON_INTERPRET=1 on a CPU")
    prompts = random_prompts(4, seed=44, longest=40)
    params = [greedy(6) if i % 2 else drawn(i, 6) for i in range(4)]
    plain, fast = (
        make_engine("qwen2", backend=name, device=device, max_batch_tokens=24)
        for name in ("reference", "triton")
    )
    assert tokens_of(plain, prompts, params) == tokens_of(fast, prompts, params)


@pytest.mark.parametrize("family", ["mistral", "qwen2-windows"])
@pytest.mark.parametrize("fast", ["sdpa", "native", "triton"])
def test_logits_agree_step_by_step(
    make_engine: MakeEngine, device: str, fast: str, family: str
) -> None:
    if fast == "triton" and device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels run on the GPU here: lifted by TRITON_INTERPRET=1 on a CPU")
    if fast == "native" and device != "cpu":
        pytest.skip("the native backend runs on a CPU")
    # Triton is interpreted on a CPU: half as many, of 1 to 26 tokens, beyond the window.
    prompts = random_prompts(3 if fast == "triton" else 6, seed=41, longest=60)
    engines = [
        make_engine(family, backend=b, device=device, block_size=4, num_blocks=200)
        for b in ("reference", fast)
    ]
    for engine in engines:
        for prompt in prompts:
            engine.add(prompt, greedy(12 if fast == "sdpa" else 4))
    while engines[0].has_work:
        plans = [engine.scheduler.schedule() for engine in engines]
        logits = [e.runner.run(plan).logits for e, plan in zip(engines, plans, strict=True)]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
        for engine, plan in zip(engines, plans, strict=True):
            rows = [plan.sequences[row] for row in plan.sampled]
            engine.scheduler.commit(plan, engine.sampler(logits[0], rows))


@pytest.mark.gpu
@pytest.mark.timeout(600)  # it waits for a compiler the first time
def test_flashinfer_rounds_no_worse_than_our_kernels(
    make_engine: MakeEngine, repository: Path
) -> None:
    """In bfloat16, which it needs: both against float32, step by step."""
    pytest.importorskip("flashinfer", reason="pip install flashinfer-python")
    prompts = random_prompts(6, seed=41, longest=90)
    engines = [
        make_engine(
            load_model(repository / "adapters/tinypy/base", device="cuda", dtype=dtype),
            **{"backend": name, "device": "cuda", "max_batch_tokens": 40, "block_size": 4},
        )
        for name, dtype in (
            ("reference", "float32"),
            ("triton", "bfloat16"),
            ("triton+flashinfer", "bfloat16"),
        )
    ]
    for engine in engines:
        for prompt in prompts:
            engine.add(prompt, greedy(12))
    while engines[0].has_work:
        plans = [engine.scheduler.schedule() for engine in engines]
        exact, ours, theirs = (
            e.runner.run(plan).logits.float() for e, plan in zip(engines, plans, strict=True)
        )
        assert (theirs - exact).norm() < 2 * (ours - exact).norm() < 0.4 * exact.norm()
        for engine, plan in zip(engines, plans, strict=True):
            rows = [plan.sequences[row] for row in plan.sampled]
            engine.scheduler.commit(plan, engine.sampler(exact, rows))
    own = engines[2].runner.backend.describe()["flashinfer"]
    assert own["decodes"] > 0 < own["chunks"]
    assert "left to our kernels" not in own


def test_swapping_backends_in_mid_flight(make_engine: MakeEngine) -> None:
    prompts = random_prompts(5, seed=42)
    expected = tokens_of(make_engine(), prompts, greedy(20))
    engine = make_engine(max_batch_tokens=16, max_sequences=4)
    ids = [engine.add(prompt, greedy(20)) for prompt in prompts]
    while engine.has_work:
        for name in ("native", "reference", "sdpa"):
            engine.swap(backend=name)
            assert engine.runner.backend.name == name
            engine.step()
    assert [engine.output(i).outputs[0].token_ids for i in ids] == expected


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_not_a_number_stays_with_the_request_that_made_it(
    make_engine: MakeEngine, backend: str, device: str, poison: float
) -> None:
    """What one request has left in the cache must not reach another, not even times zero."""
    prompts = random_prompts(5, seed=43, longest=30)
    expected = tokens_of(make_engine(backend=backend, device=device), prompts, greedy(12))
    engine = make_engine(backend=backend, device=device, num_blocks=30, block_size=8)
    ill = engine.add([1] * 40, greedy(30))
    engine.step()
    engine.cache.tensor[:, :, engine.cache.blocks.tables[0].block_ids] = poison
    beside = [engine.add(prompt, greedy(12)) for prompt in prompts[:3]]
    for _ in range(6):
        engine.step()
    assert engine.output(ill).outputs[0].finish_reason == "error"
    after = [engine.add(prompt, greedy(12)) for prompt in prompts[3:]]
    engine.run()
    got = [engine.output(name).outputs[0].token_ids for name in beside + after]
    assert got == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_logits_have_the_same_bits_however_a_request_is_run(
    make_engine: MakeEngine, checkpoint: Callable[[str], Path], dtype: torch.dtype
) -> None:
    """Alone and whole, or among others, in chunks, preempted and resumed: not nearly, but equal."""
    model = load_model(checkpoint("mistral"), device="cpu", dtype=dtype)
    prompts = random_prompts(6, seed=44, longest=60)
    alone = make_engine(model, backend="native", prefix_reuse=False)
    expected = [logits_of(alone, [prompt])[0] for prompt in prompts]
    crowded = make_engine(
        model, backend="native", num_blocks=12, block_size=8, max_batch_tokens=9, max_sequences=4
    )
    for got, wanted in zip(logits_of(crowded, prompts), expected, strict=True):
        assert torch.equal(got, wanted)


def logits_of(engine: Engine, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Return the logits [12, vocab] that each prompt's greedy tokens were chosen from."""
    seen: dict[str, list[torch.Tensor]] = {engine.add(p, greedy(12)): [] for p in prompts}
    sampler = engine.sampler

    def watching(logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
        for row, sequence in zip(logits, sequences, strict=True):
            seen[sequence.request.request_id].append(row.clone())
        return sampler(logits, sequences)

    engine.swap(sampler=watching)
    engine.run()
    engine.swap(sampler=sampler)
    return [torch.stack(rows) for rows in seen.values()]
