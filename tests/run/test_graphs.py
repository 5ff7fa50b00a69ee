"""What CUDA graphs rest on, without one: static inputs, padding, the watch, who runs eagerly.

The padded pass itself runs here too, in Triton's interpreter or natively on a GPU; replays are in
`tests/engine/test_cuda_graphs.py`.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from interpreter import kernel_device
from torch import nn

from workbench.build import check
from workbench.cache import KVCache
from workbench.config import EngineConfig, ModelConfig, SchedulerConfig
from workbench.draft import Draft
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.layers import probe
from workbench.models import DecoderLM, LlamaForCausalLM
from workbench.ops import get_backend
from workbench.results import Accepted, SampledTokens
from workbench.run import DecodeGraphs, InputBuilder, Runner, StepInputs
from workbench.run.decode_buffers import DecodeBuffers
from workbench.run.graph_sizes import LADDER, resolve_sizes
from workbench.run.packed_buffers import PackedBuffers
from workbench.run.watch import ModelWatch
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Capturable:
    """A backend's answer to whether it can be captured, where no pass is run."""

    def __init__(self, name: str = "triton", capturable: bool = True) -> None:
        self.name, self.capturable = name, capturable


Windows = tuple[int | None, ...]
WINDOWS = pytest.mark.parametrize("windows", [(), (6, 6)], ids=["full", "window"])


def make_model(device: str = "cpu", windows: Windows = ()) -> DecoderLM:
    """Return a model of random weights, without a tokenizer."""
    sizes = 50, 32, 24, 2, 2, 1, 16
    config = ModelConfig("LlamaForCausalLM", *sizes, context=96, windows=windows)
    model = LlamaForCausalLM(config).to(device)
    model.init_weights(std=0.3)
    return model.requires_grad_(False)


def make_engine(
    device: str = "cpu", backend: str = "reference", windows: Windows = (), **settings: Any
) -> Engine:
    """Return an engine whose cache holds NaN wherever nobody has written."""
    model = make_model(device, windows)
    cache = KVCache.for_model(model, num_blocks=40, block_size=4)
    for tensor in cache.tensors:
        tensor.fill_(torch.nan)
    scheduler = Scheduler(cache, SchedulerConfig(max_batch_tokens=64, max_sequences=8))
    return Engine(model, cache, scheduler, Runner(model, cache, backend, **settings))


def greedy(max_tokens: int = 12, **settings: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **settings)


def decoding(engine: Engine, lengths: list[int], **settings: Any) -> None:
    """Add prompts of these lengths and run them until all decode."""
    for number, length in enumerate(lengths):
        engine.add([1 + (7 * number + i) % 49 for i in range(length)], greedy(**settings))
    engine.step()


# --- static inputs ----------------------------------------------------------------------------


def expected_inputs(engine: Engine, plan: Any, buffers: DecodeBuffers) -> dict[str, Any]:
    """Return what the buffers must hold for a plan, worked out row by row."""
    size = engine.cache.block_size
    want: dict[str, list[Any]] = {name: [0] * buffers.rows for name in buffers.views}
    want["slot_mapping"] = [-1] * buffers.rows
    for row, (sequence, start) in enumerate(zip(plan.sequences, plan.starts, strict=True)):
        table = engine.cache.blocks.tables[sequence.sequence_id]
        ids, place = table.block_ids, start - (table.first + len(table.holes)) * size
        want["token_ids"][row] = sequence.token_ids[start]
        want["positions"][row] = start
        want["slot_mapping"][row] = ids[place // size] * size + place % size
        want["rope_lens"][row] = max(sequence.num_prompt_tokens, start + 1)
        want["context_lens"][row] = place + 1
        want["block_tables"][row] = ids
    return want


def check_inputs(engine: Engine, plan: Any, buffers: DecodeBuffers) -> None:
    want = expected_inputs(engine, plan, buffers)
    tables = buffers.views["block_tables"].tolist()
    for got, ids in zip(tables, want.pop("block_tables"), strict=True):
        if ids:
            assert got[: len(ids)] == ids
    for name, values in want.items():
        assert buffers.views[name].tolist() == values, name


def every_other(kept: Any) -> list[int]:
    """A dropping policy."""
    return [b.index for b in kept.blocks if b.index % 2 == 0 and b.stop < kept.num_tokens - 2]


@pytest.mark.parametrize(
    ("windows", "dropping"),
    [((), "keep_all"), ((6, 6), "keep_all"), ((), every_other)],
    ids=["full", "window", "dropped"],
)
def test_buffers_hold_the_plan_through_growth_forks_and_ends(
    windows: Windows, dropping: Any
) -> None:
    """Step after step one object is filled; nothing of an earlier batch may be left in it."""
    engine = make_engine(windows=windows)
    engine.swap(dropping=dropping)
    buffers = DecodeBuffers(8, 24, CPU, rope_lens=True)
    decoding(engine, [3, 9, 1, 14])
    first = next(iter(engine.requests))
    for step in range(20):
        if step == 2:
            engine.fork(first, new_id="twin")  # its next write copies the block they share
        if step == 5:
            engine.abort(first)
        if step == 7:
            engine.add([5, 6], greedy(4))
        plan = engine.scheduler.schedule()
        if not plan:
            break
        if plan.num_decodes == len(plan.sequences):
            lens = buffers.fill(plan, engine.cache)
            check_inputs(engine, plan, buffers)
            buffers.fill(plan, engine.cache)  # a step that failed is run again
            assert lens == buffers.views["context_lens"].tolist()
            check_inputs(engine, plan, buffers)
        logits = engine.runner.run(plan).logits
        assert logits is not None
        rows = [plan.sequences[row] for row in plan.sampled]
        engine.scheduler.commit(plan, engine.sampler(logits, rows))
    assert (engine.cache.stats().dropped > 5) == (dropping is every_other)
    engine.discard(list(engine.requests))


def test_buffers_write_a_whole_table_after_a_gap() -> None:
    """A sequence may come back with other blocks: only steps in a row write the last one alone."""
    engine = make_engine()
    buffers = DecodeBuffers(2, 24, CPU, rope_lens=True)
    decoding(engine, [5, 6])
    plan = engine.scheduler.schedule()
    buffers.fill(plan, engine.cache)
    tables = engine.cache.blocks.tables
    for sequence in plan.sequences:
        tables[sequence.sequence_id].block_ids[0] += 20
    plan.step += 2
    plan.starts = [start + 1 for start in plan.starts]
    for sequence in plan.sequences:
        sequence.token_ids.append(3)
    buffers.fill(plan, engine.cache)
    check_inputs(engine, plan, buffers)


def test_sections_are_aligned() -> None:
    """A kernel is compiled anew for a pointer that 16 does not divide."""
    for rows in (1, 3, 8):
        views = DecodeBuffers(rows, 64, CPU, rope_lens=True).views
        base = views["token_ids"].data_ptr()
        assert all((view.data_ptr() - base) % 64 == 0 for view in views.values())


def test_several_groups_run_eagerly() -> None:
    engine = make_engine(windows=(None, 6))
    graphs = DecodeGraphs(engine.model, engine.cache)
    decoding(engine, [3, 9])
    plan = engine.scheduler.schedule()
    assert graphs.why_eager(plan, Capturable()) == "the cache has several KV groups"


@pytest.mark.parametrize("windows", [(), (6, 6)], ids=["full", "window"])
def test_packed_buffers_hold_drafts_step_after_step(windows: Windows) -> None:
    """Rows come forward by as much as is right, trees among them; blocks come, go and are copied;
    steps without drafts and steps that are run again lie between."""
    engine = make_engine(windows=windows)
    buffers = PackedBuffers(48, 24, CPU, rows=8, words=1, rope_lens=True)
    decoding(engine, [3, 9, 1, 14], max_tokens=30)
    first = next(iter(engine.requests))
    inputs = InputBuilder(engine.cache, CPU, rope_lens=True)
    shapes: list[tuple[int, ...]] = [(-1, 0, 1, 2, 3), (-1,), (-1, -1, 0, 2, 2)]
    if windows:
        shapes[2] = (-1, 0)
    drafted = 0
    for step in range(16):
        if step == 3:
            engine.fork(first, new_id="twin")  # its next write copies the block they share
        if step == 6:
            engine.abort(first)
        drafts = {}
        for sequence in engine.scheduler.running if step not in (5, 9) else ():
            parents = shapes[(sequence.sequence_id + step) % 3]
            length = sequence.max_num_tokens - sequence.num_tokens - 1
            if sequence.num_tokens - sequence.num_computed == 1 and length > len(parents):
                tokens = tuple(range(10, 10 + len(parents)))
                drafts[sequence.sequence_id] = Draft(tokens, parents)
        plan = engine.scheduler.schedule(drafts)
        if not plan:
            break
        if plan.num_decodes + len(plan.drafts) < len(plan.sequences):  # the fork's last token
            finish(engine, plan, step)
            continue
        drafted += len(plan.drafts)
        for _ in range(1 + step % 2):
            lens = buffers.fill(plan, engine.cache)
            wanted = inputs.build(plan, engine.runner.backend)
            check_packed(buffers, plan, lens, wanted)
        finish(engine, plan, step)
    assert drafted > 20
    engine.discard(list(engine.requests))


def check_packed(buffers: PackedBuffers, plan: Any, lens: list[int], wanted: StepInputs) -> None:
    """Compare static inputs of rows with drafts with those that the eager pass is given."""
    ctx, views = wanted.ctx, buffers.views
    tokens, rows = plan.num_tokens, len(plan.sequences)
    pairs = [("token_ids", wanted.token_ids), ("positions", ctx.positions)]
    pairs += [("slot_mapping", ctx.slot_mapping), ("rope_lens", ctx.rope_lens)]
    for name, expected in pairs:
        assert views[name][:tokens].tolist() == expected.tolist(), name
    assert views["context_lens"][:rows].tolist() == ctx.context_lens.tolist() == lens
    assert views["query_starts"][: rows + 1].tolist() == ctx.query_starts.tolist()
    for row, ids in enumerate(ctx.block_tables.tolist()):
        used = -(-lens[row] // 4)
        assert views["block_tables"][row, :used].tolist() == ids[:used]
    if plan.drafts:
        assert (views["slot_mapping"][tokens:] == -1).all()
        assert (views["context_lens"][rows:] == 0).all()
    if ctx.trees is not None:
        masks = views["ancestors"][plan.num_decodes : tokens]
        assert masks.tolist() == ctx.trees.ancestors.tolist()


def finish(engine: Engine, plan: Any, step: int) -> None:
    """Commit a plan of whose drafts one token after the other is right, or fewer."""
    sampled = SampledTokens([7] * len(plan.sampled))
    for place, row in enumerate(plan.sampled):
        if row in plan.drafts:
            path = plan.drafts[row].path(len(plan.drafts[row]) - 1)[: (step + row) % 4]
            tokens = tuple(plan.drafts[row].token_ids[node] for node in path)
            sampled.accepted[place] = Accepted(tuple(path), tokens)
    engine.scheduler.commit(plan, sampled)


# --- the padded pass --------------------------------------------------------------------------


@pytest.mark.parametrize("device", [kernel_device()])
@pytest.mark.parametrize("size", [3, 8])
@WINDOWS
def test_padding_changes_no_row_and_no_block(device: str, size: int, windows: Windows) -> None:
    engine = make_engine(device, "triton", windows, cuda_graphs=False)
    graphs = DecodeGraphs(engine.model, engine.cache, (size,))
    decoding(engine, [3, 9, 13], max_tokens=4)
    with torch.inference_mode():
        plan = engine.scheduler.schedule()
        before = engine.cache.tensor.clone()
        hidden, ctx = graphs.run_padded(plan, engine.runner.backend)
        logits = engine.model.logits(hidden, ctx)
        written = engine.cache.tensor.clone()
        engine.cache.tensor.copy_(before)
        expected = engine.runner.run(plan).logits
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            written, engine.cache.tensor, rtol=1e-5, atol=1e-5, equal_nan=True
        )
    engine.discard(list(engine.requests))


@pytest.mark.parametrize("device", [kernel_device()])
@pytest.mark.parametrize(
    ("windows", "parents"),
    [((), (-1, 0, 1)), ((), (-1, -1, 0, 2, 2)), ((6, 6), (-1, 0, 1))],
    ids=["chain", "tree", "chain in a window"],
)
def test_padded_drafts_change_no_row_and_no_block(
    device: str, windows: Windows, parents: tuple[int, ...]
) -> None:
    """Rows with drafts of several sizes beside one without, and room for more of both."""
    engine = make_engine(device, "triton", windows, cuda_graphs=False)
    graphs = DecodeGraphs(engine.model, engine.cache, (8,))
    graphs.points = "", "layers.0"
    decoding(engine, [3, 9, 13], max_tokens=9)
    first, second, _ = engine.scheduler.running
    drafts = {
        first.sequence_id: Draft(tuple(range(20, 20 + len(parents))), parents),
        second.sequence_id: Draft((7,)),
    }
    engine.runner.captured = graphs.points
    with torch.inference_mode():
        plan = engine.scheduler.schedule(drafts)
        assert plan.num_tokens == 5 + len(parents) - 1
        before = engine.cache.tensor.clone()
        hidden, ctx = graphs.run_padded(plan, engine.runner.backend)
        logits = engine.model.logits(hidden, ctx)
        written = engine.cache.tensor.clone()
        engine.cache.tensor.copy_(before)
        expected = engine.runner._run_eagerly(plan)
        torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(graphs.states, expected.states, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            written, engine.cache.tensor, rtol=1e-5, atol=1e-5, equal_nan=True
        )
    engine.discard(list(engine.requests))


class Dropped:
    """A graph that can only be dropped."""

    def reset(self) -> None:
        pass


@pytest.mark.parametrize("device", [kernel_device()])
def test_a_graph_goes_with_a_kernel_that_it_was_captured_from(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others stay; what was captured here is an eager pass."""
    monkeypatch.setattr("workbench.run.graphs.captured", lambda compute, *_: (Dropped(), compute()))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    engine = make_engine(device, "triton")
    graphs: Any = DecodeGraphs(engine.model, engine.cache)
    engine.runner.graphs = graphs
    backend: Any = engine.runner.backend
    for prompt in ([1, 2, 3], [4, 5]):
        engine.add(prompt, SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    engine.step()
    plan = engine.scheduler.schedule()
    with torch.inference_mode():
        graphs._graphs["decode"] = graphs._capture(graphs._fill(plan, backend), backend)
    assert {"rms_norm", "silu_mul", "paged_decode", "gemv"} <= graphs._graphs["decode"].kernels
    for unused in ("prefill_attention", "sample", "layer_norm"):
        engine.runner.replace_kernel(backend.kernels.named(unused))
        assert list(graphs._graphs) == ["decode"]
    engine.runner.replace_kernel(backend.kernels.named("silu_mul"))
    assert (graphs._graphs, graphs._pool) == ({}, None)


@pytest.mark.parametrize("device", [kernel_device()])
def test_the_number_of_splits_is_part_of_a_graph_s_key(device: str) -> None:
    backend: Any = get_backend("triton", device)
    kv = torch.empty(2, 4, 16, 8, 64)
    key = backend.graph_key([100, 0], kv)
    assert backend.graph_key([90, 30], kv) == key
    assert backend.graph_key([9000, 9000], kv) != key  # split
    draft = backend.graph_key([], kv, [100, 0], 8)
    assert backend.graph_key([], kv, [90, 30], 8) == draft
    assert backend.graph_key([], kv, [9000, 0], 8) != draft


@pytest.mark.parametrize("device", [kernel_device()])
def test_few_numbers_of_splits(device: str) -> None:
    """Each is another capture, so a context that grows may not go through all of them."""
    backend: Any = get_backend("triton", device)
    kv = torch.empty(2, 4, 16, 8, 64)
    assert len({backend.graph_key([n], kv) for n in range(1, 32768, 64)}) <= 14
    assert len({backend.graph_key([], kv, [n], 8) for n in range(1, 32768, 64)}) <= 6


# --- who runs eagerly -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, ""),
        ({"prompt_logprobs": 1}, "asks for more"),
        ({"activations": "layers.0"}, "asks for more"),
        ({"hidden_states": True}, "asks for more"),
    ],
)
def test_rows_that_ask_for_more_run_eagerly(settings: dict[str, Any], reason: str) -> None:
    engine, backend = make_engine(), Capturable()
    graphs = DecodeGraphs(engine.model, engine.cache)
    decoding(engine, [3, 5])
    assert graphs.why_eager(engine.scheduler.schedule(), backend) == ""  # type: ignore[arg-type]
    engine.add([1, 2, 3], greedy(**settings))
    mixed = engine.scheduler.schedule()
    why = graphs.why_eager(mixed, backend)  # type: ignore[arg-type]
    assert (reason or "seldom") in why
    engine.scheduler.commit(mixed, engine.sampler(engine.runner.run(mixed).logits, mixed.sequences))  # type: ignore[arg-type]
    plan = engine.scheduler.schedule()
    why = graphs.why_eager(plan, backend)  # type: ignore[arg-type]
    assert (reason in why) if reason else why == ""
    engine.discard(list(engine.requests))


def test_embeddings_hooks_sizes_and_backends_run_eagerly() -> None:
    engine, backend = make_engine(), Capturable()
    graphs = DecodeGraphs(engine.model, engine.cache, (1, 2))
    decoding(engine, [3, 5])
    plan = engine.scheduler.schedule()

    def why(backend: Any = backend) -> str:
        return graphs.why_eager(plan, backend)

    assert why() == ""
    assert why(Capturable("sdpa", False)) == "the sdpa backend cannot be captured"
    for point in ("", "layers.1.mlp", "head"):
        with probe(engine.model, [point]):
            assert why() == "a hook (a probe) sits on the model"
    assert why() == ""
    plan.sampled = [0]
    assert why() == "not every row samples"
    engine.add([torch.ones(2, 32), 3], greedy())
    engine.step()
    plan = engine.scheduler.schedule()
    assert why() == "more than 2 rows"
    graphs = DecodeGraphs(engine.model, engine.cache, (1, 2, 4))
    assert "embeddings" in why()
    plan.weighed = [0]
    assert "a dropping policy" in why()
    engine.discard(list(engine.requests))


def test_what_can_be_captured() -> None:
    able = {name: get_backend(name, "cpu").capturable for name in ("reference", "sdpa", "native")}
    assert able == {"reference": False, "sdpa": False, "native": False}
    with pytest.raises(NotImplementedError, match="sdpa cannot be captured"):
        get_backend("sdpa").graph_key([1], torch.empty(0))


@pytest.mark.parametrize("device", [kernel_device()])
def test_triton_can_be_captured_on_a_gpu(device: str) -> None:
    assert get_backend("triton", device).capturable == (device == "cuda")


# --- the watch --------------------------------------------------------------------------------


def test_the_watch_sees_what_a_graph_cannot() -> None:
    model: Any = make_model()
    watch = ModelWatch(model)

    def seen() -> bool:
        changed = watch.changed
        watch.renew()
        assert not watch.changed
        return changed

    model.layers[0].mlp.down_proj.weight.mul_(2)  # in place: a graph sees it
    assert not watch.changed
    model.layers[0].mlp.down_proj.weight.data = torch.zeros(32, 24)
    assert seen()
    model.layers[1].mlp.down_proj.weight = nn.Parameter(torch.zeros(32, 24))
    assert seen()
    model.layers[1].mlp = make_model().layers[0].mlp  # type: ignore[index]
    assert seen()
    model.rope.inv_freq = model.rope.inv_freq.clone()
    assert seen()
    assert not watch.hooked
    handle = model.layers[0].register_forward_pre_hook(lambda *_: None)
    assert watch.hooked
    handle.remove()
    assert not watch.hooked


# --- the choice -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "device", "expected"),
    [
        ("auto", CPU, None),
        ("auto", GPU, LADDER),
        (True, GPU, LADDER),
        (False, GPU, None),
        (False, CPU, None),
        ([8, 1, 4, 4], GPU, (1, 4, 8)),
        (range(1, 4), GPU, (1, 2, 3)),
    ],
)
def test_the_choice_of_sizes(choice: Any, device: torch.device, expected: Any) -> None:
    assert resolve_sizes(choice, device, Capturable()) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", ["yes", 8, [], [0], [1.5], [True], [-4], None, "Auto", {}])
def test_a_bad_choice_is_refused(choice: Any) -> None:
    with pytest.raises(ConfigError, match=r"cuda_graphs=.* is no choice of batch sizes"):
        resolve_sizes(choice, GPU, Capturable())  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [True, [1, 2]])
def test_insisting_where_there_can_be_none_is_refused(choice: Any) -> None:
    sdpa: Any = Capturable("sdpa", False)
    with pytest.raises(ConfigError, match=r"the device is cpu.*Leave it at \"auto\"|the device is"):
        make_engine(cuda_graphs=choice)
    with pytest.raises(ConfigError, match="the sdpa backend cannot be captured"):
        resolve_sizes(choice, GPU, sdpa)
    with pytest.raises(ConfigError, match="cuda_graphs"):  # before anything is loaded
        check(EngineConfig(device="cpu", cuda_graphs=choice))
    assert resolve_sizes("auto", GPU, sdpa) == LADDER


def test_on_a_cpu_auto_is_eager() -> None:
    engine = make_engine()
    assert engine.runner.graphs is None
    assert engine.runner.describe()["mode"] == "eager"


def test_the_ladder_rises_and_pads_little() -> None:
    assert list(LADDER) == sorted(set(LADDER))
    assert all(b <= 2 * a for a, b in itertools.pairwise(LADDER))


def test_closing_drops_the_model() -> None:
    engine = make_engine()
    graphs = DecodeGraphs(engine.model, engine.cache)
    assert "0 captured" in graphs.summary
    assert "held" in repr(graphs) or "held" in str(graphs.describe())
    graphs.close()
    assert not hasattr(graphs, "model")
