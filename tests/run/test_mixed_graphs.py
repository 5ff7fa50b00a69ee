"""Small mixed batches at fixed addresses: inputs and results are those of the eager pass.

Replays of them are in `tests/engine/test_cuda_graphs.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import kernel_device
from random_adapters import random_adapter

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.config import ModelConfig, SchedulerConfig
from workbench.engine import Engine
from workbench.models import LlamaForCausalLM
from workbench.ops import get_backend
from workbench.results import SampledTokens
from workbench.run import DecodeGraphs, InputBuilder, Runner
from workbench.run.graph_sizes import CHUNK_ROWS, CHUNK_TOKENS, padded_size
from workbench.run.mixed_buffers import MixedBuffers
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler

CPU = torch.device("cpu")


class Capturable:
    """A backend's answer to whether it can be captured, where no pass is run."""

    name, capturable = "triton", True


def make_engine(
    device: str = "cpu",
    backend: str = "reference",
    windows: tuple[int | None, ...] = (),
    budget: int = 24,
) -> Engine:
    """Return an engine whose cache holds NaN wherever nobody has written."""
    sizes = 50, 32, 24, 2, 2, 1, 16
    config = ModelConfig("LlamaForCausalLM", *sizes, context=96, windows=windows)
    model = LlamaForCausalLM(config).to(device)
    model.init_weights(std=0.3)
    model.requires_grad_(False)
    cache = KVCache.for_model(model, num_blocks=60, block_size=4)
    for tensor in cache.tensors:
        tensor.fill_(torch.nan)
    scheduler = Scheduler(cache, SchedulerConfig(max_batch_tokens=budget, max_sequences=8))
    runner = Runner(model, cache, backend, cuda_graphs=False)
    return Engine(model, cache, scheduler, runner)


def add(engine: Engine, length: int, max_tokens: int = 12, lora: str | None = None) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    engine.add([1 + (7 * length + i) % 49 for i in range(length)], params, lora=lora)


def go_on(engine: Engine, plan: StepPlan) -> None:
    """Run and commit a plan."""
    logits = engine.runner.run(plan).logits
    rows = [plan.sequences[row] for row in plan.sampled]
    sampled = SampledTokens([]) if logits is None else engine.sampler(logits, rows)
    engine.scheduler.commit(plan, sampled)


def check_inputs(engine: Engine, plan: StepPlan, buffers: MixedBuffers) -> None:
    """Compare the static inputs of a plan with those that the eager pass is given."""
    wanted = InputBuilder(engine.cache, CPU, rope_lens=True).build(plan, engine.runner.backend)
    count, first, views = plan.num_decodes, buffers.decodes, buffers.views
    num_rows, num_tokens = len(plan.sequences), plan.num_tokens
    tokens = [*range(count), *range(first, first + num_tokens - count)]
    rows = [*range(count), *range(first, first + num_rows - count)]
    ctx = wanted.ctx
    pairs = [("token_ids", wanted.token_ids), ("positions", ctx.positions)]
    pairs += [("slot_mapping", ctx.slot_mapping), ("rope_lens", ctx.rope_lens)]
    for name, expected in pairs:
        assert views[name][tokens].tolist() == expected.tolist(), name
    assert views["context_lens"][rows].tolist() == ctx.context_lens.tolist()
    for row, place in enumerate(rows):
        table = engine.cache.blocks.tables[plan.sequences[row].sequence_id].block_ids
        assert views["block_tables"][place, : len(table)].tolist() == table
    starts = views["query_starts"]
    lens = starts.diff().tolist()
    assert lens[:first] == [1] * first
    assert lens[first : first + num_rows - count] == plan.num_new[count:]
    assert not any(lens[first + num_rows - count :])
    place_of = dict(enumerate(tokens))
    asked = views["logit_rows"][: len(plan.sampled)].tolist()
    assert asked == [place_of[row] for row in wanted.logit_rows.tolist()]
    empty = np.setdiff1d(np.arange(len(views["token_ids"])), tokens)
    assert (views["slot_mapping"][empty] == -1).all()
    others = np.setdiff1d(np.arange(len(views["context_lens"])), rows)
    assert (views["context_lens"][others] == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=10),
    budget=st.integers(8, 24),
    windows=st.sampled_from([(), (6, 6)]),
)
def test_inputs_are_those_of_the_eager_pass(
    lengths: list[int], budget: int, windows: tuple[int | None, ...]
) -> None:
    """Prompts arrive one after the other, in chunks; one object is filled step after step."""
    engine = make_engine(windows=windows, budget=budget)
    buffers = MixedBuffers(8, 24, CPU, rope_lens=True, rows=8, tokens=24)
    due, mixed = list(lengths), 0
    while due or engine.has_work:
        if due:
            add(engine, due.pop(), max_tokens=5)
        plan = engine.scheduler.schedule()
        lens = buffers.fill(plan, engine.cache)
        assert lens == buffers.views["context_lens"].tolist()
        check_inputs(engine, plan, buffers)
        mixed += plan.num_decodes < len(plan.sequences)
        go_on(engine, plan)
    assert mixed > 0


@pytest.mark.parametrize("device", [kernel_device()])
@pytest.mark.parametrize("windows", [(), (6, 6)], ids=["full", "window"])
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapters"])
def test_a_padded_mixed_pass_is_the_eager_one(device: str, windows: Any, adapted: bool) -> None:
    """Decodes, chunks that begin, go on and end; what nobody wrote is NaN."""
    engine = make_engine(device, "triton", windows, budget=14)
    graphs = DecodeGraphs(engine.model, engine.cache)
    graphs.adapters = engine.loras.batches
    engine.loras.slots.beside = False  # all may start at once
    for number, rank in enumerate((3, 5)):
        adapter = random_adapter(engine.model, number, rank, head=True)
        engine.loras.load(f"a{number}", adapter)
    names = ("a0", None, "a1") if adapted else (None,) * 3
    add(engine, 5, lora=names[0])
    go_on(engine, engine.scheduler.schedule())
    for length, name in zip((17, 20), names[1:], strict=True):
        add(engine, length, max_tokens=2, lora=name)
    seen = set()
    with torch.inference_mode():
        for _ in range(4):
            plan = engine.scheduler.schedule()
            before = engine.cache.tensor.clone()
            hidden, ctx = graphs.run_padded(plan, engine.runner.backend)
            assert len(hidden) == len(plan.sampled)
            written = engine.cache.tensor.clone()
            engine.cache.tensor.copy_(before)
            expected = engine.runner.run(plan).logits
            close: Any = {"rtol": 1e-5, "atol": 1e-5}
            if plan.sampled:
                torch.testing.assert_close(engine.model.logits(hidden, ctx), expected, **close)
            torch.testing.assert_close(written, engine.cache.tensor, equal_nan=True, **close)
            engine.cache.tensor.copy_(before)
            seen.add(len(plan.sequences) - plan.num_decodes)
            go_on(engine, plan)
    assert max(seen) > 1
    engine.discard(list(engine.requests))


@pytest.mark.parametrize(("between", "captured"), [(0, True), (30, True), (136, False)])
def test_a_mixed_size_is_captured_where_it_comes_often(between: int, captured: bool) -> None:
    """Eight prompts of 16k end beside decodes once in a run of 137 steps: captured in the third
    run, that size took 1.3 s of 5.2."""
    engine = make_engine()
    graphs = DecodeGraphs(engine.model, engine.cache)
    backend: Any = Capturable()
    add(engine, 9)
    plan = engine.scheduler.schedule()
    go_on(engine, plan)
    decode = engine.scheduler.schedule()
    whys = []
    for _ in range(12):
        whys.append(graphs.why_eager(plan, backend))
        assert not any(graphs.why_eager(decode, backend) for _ in range(between))
    assert ("" in whys) is captured
    engine.discard(list(engine.requests))


def test_a_mixed_size_is_captured_when_it_comes_again() -> None:
    engine = make_engine()
    graphs = DecodeGraphs(engine.model, engine.cache)
    backend: Any = Capturable()
    add(engine, 9)
    plan = engine.scheduler.schedule()
    seldom = "prompts of a size that is seldom"
    assert [graphs.why_eager(plan, backend) for _ in range(4)] == [seldom, seldom, "", ""]
    go_on(engine, plan)
    add(engine, 5)
    mixed = engine.scheduler.schedule()
    assert mixed.num_decodes == 1
    assert graphs.why_eager(mixed, backend) == ""  # of the same size: none or up to 8 decodes
    engine.discard(list(engine.requests))


def test_long_and_many_prompts_run_eagerly() -> None:
    engine = make_engine()
    graphs = DecodeGraphs(engine.model, engine.cache)
    backend: Any = Capturable()
    add(engine, 8)
    plan = engine.scheduler.schedule()
    plan.num_new = [CHUNK_TOKENS[-1] + 1]
    assert "tokens of them" in graphs.why_eager(plan, backend)
    plan.sequences *= CHUNK_ROWS[-1] + 1
    plan.num_new = [8] * len(plan.sequences)
    assert "tokens of them" in graphs.why_eager(plan, backend)
    engine.discard(list(engine.requests))


def test_sizes_are_few() -> None:
    """Each is a capture: a prompt of any length and any number of decodes find one of these."""
    engine = make_engine(budget=512)
    add(engine, 30)
    [sequence] = engine.scheduler.schedule().sequences
    found = set()
    for count in range(0, 513, 3):
        for num_new in range(2, 513, 5):
            plan = StepPlan(1, [sequence] * (count + 1), [0] * (count + 1), [1] * count + [num_new])
            plan.num_decodes = count
            size = padded_size(plan, engine.cache, (1, 512))
            assert size.rows >= count
            assert size.chunk_tokens >= num_new
            found.add(size)
    assert len(found) == 7 * len(CHUNK_TOKENS)
    engine.discard(list(engine.requests))


@pytest.mark.parametrize("device", [kernel_device()])
def test_a_batch_without_decodes_has_a_key(device: str) -> None:
    backend: Any = get_backend("triton", device)
    assert backend.graph_key([0] * 8, torch.empty(2, 4, 16, 8, 64)) == backend.graph_key(
        [0] * 8, torch.empty(2, 4, 16, 8, 64)
    )
