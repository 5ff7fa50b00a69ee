"""The CPU's tape: what is recorded, what is refused, and that a replay is the pass itself."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from drafting import RandomTrees, Says
from torch import Tensor

from workbench.cache import KVCache
from workbench.config import ModelConfig, RopeScaling, SchedulerConfig
from workbench.draft import Draft
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.layers import probe
from workbench.models import DecoderLM, LlamaForCausalLM
from workbench.ops.tape import NotRecordable, Tape
from workbench.run import DecodeTapes, Runner
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler

DTYPES = [torch.float32, torch.bfloat16]


def make_model(dtype: torch.dtype = torch.float32, **settings: Any) -> DecoderLM:
    """Return a model of random weights, without a tokenizer."""
    config = ModelConfig("LlamaForCausalLM", 50, 32, 24, 2, 2, 1, 16, context=512, **settings)
    model = LlamaForCausalLM(config).to(dtype)
    model.init_weights(std=0.3)
    return model.requires_grad_(False)


def make_engine(model: DecoderLM | None = None, backend: str = "native", **settings: Any) -> Engine:
    """Return an engine whose cache holds NaN wherever nobody has written."""
    model = model or make_model()
    cache = KVCache.for_model(model, num_blocks=400, block_size=4)
    for tensor in cache.tensors:
        tensor.fill_(torch.nan)
    scheduler = Scheduler(cache, SchedulerConfig(max_batch_tokens=512, max_sequences=32))
    return Engine(model, cache, scheduler, Runner(model, cache, backend, **settings))


def tapes_of(engine: Engine) -> DecodeTapes:
    assert engine.runner.tapes is not None
    return engine.runner.tapes


def greedy(max_tokens: int = 12, **settings: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **settings)


def add(engine: Engine, count: int, length: int = 6, **settings: Any) -> list[str]:
    """Queue prompts that differ in content and length."""
    prompts = ([1 + (7 * n + i) % 49 for i in range(length + n % 5)] for n in range(count))
    return [engine.add(prompt, greedy(**settings)) for prompt in prompts]


def compare_steps(engine: Engine) -> int:
    """Run everything, each replayed pass also eagerly; return how many were equal in all bits."""
    tapes, compared = tapes_of(engine), 0
    with torch.inference_mode():
        while engine.has_work:
            plan = engine.scheduler.schedule()
            replays = tapes.replays
            logits = engine.runner.run(plan).logits
            assert logits is not None
            if tapes.replays > replays:
                assert torch.equal(engine.runner._run_eagerly(plan).logits, logits)  # type: ignore[arg-type]
                compared += 1
            rows = [plan.sequences[row] for row in plan.sampled]
            engine.scheduler.commit(plan, engine.sampler(logits, rows))
    return compared


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 8, 13])
def test_a_replay_is_the_eager_pass_bit_for_bit(count: int, dtype: torch.dtype) -> None:
    engine = make_engine(make_model(dtype))
    add(engine, count, max_tokens=14)
    assert compare_steps(engine) == 12  # a prefill, a recording, and the rest
    assert tapes_of(engine).captures == 1


@pytest.mark.parametrize("settings", [{"qkv_bias": True, "tied_head": True}, {"windows": (6, 6)}])
def test_biases_tied_heads_and_windows(settings: dict[str, Any]) -> None:
    engine = make_engine(make_model(**settings))
    add(engine, 5, max_tokens=30)
    assert compare_steps(engine) == 28


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("windows", [None, (6, 6)])
def test_drafts_are_replayed_bit_for_bit(
    dtype: torch.dtype, chain: bool, windows: tuple[int, int] | None
) -> None:
    """Rows with drafts of all sizes beside rows without, contexts over many blocks, and what the
    model's points hold of them."""
    if windows is not None and not chain:
        pytest.skip("layers with a window verify chains alone")
    engine = make_engine(make_model(dtype, **({"windows": windows} if windows else {})))
    engine.swap(proposer=RandomTrees(2, chain=chain, largest=12, vocab=50))
    engine.runner.captured = ("", "layers.0", "layers.1.mlp")
    add(engine, 5, max_tokens=40)
    tapes, speculator, compared = tapes_of(engine), engine.speculator, 0
    with torch.inference_mode():
        while engine.has_work:
            plan = engine.scheduler.schedule(speculator.propose().drafts)
            replays = tapes.replays
            output = engine.runner.run(plan)
            if plan.drafts and tapes.replays > replays:
                eager = engine.runner._run_eagerly(plan)
                assert eager.logits is not None
                assert output.logits is not None
                assert torch.equal(eager.logits, output.logits)
                assert eager.states.keys() == output.states.keys()
                for point, rows in eager.states.items():
                    assert torch.equal(rows, output.states[point])
                compared += 1
            sampled = speculator.draw(plan, output, engine.sampler).wait()
            engine.scheduler.commit(plan, sampled)
    assert compared > 20
    assert tapes.captures < 6
    assert set(tapes.eager) == {"not every row decodes"}


def test_a_pass_of_very_many_tokens_runs_eagerly() -> None:
    engine = make_engine()
    engine.swap(
        proposer=Says(lambda context: [Draft(tuple(range(32))) for _ in context.candidates]),
        scheduler_config=SchedulerConfig(max_batch_tokens=1024),
    )
    add(engine, 16, max_tokens=60)
    for _ in range(5):
        engine.step()
    assert tapes_of(engine).eager["more than 512 tokens"] == 2
    engine.discard(list(engine.requests))


def test_it_is_recorded_anew_as_rows_and_tables_grow() -> None:
    engine, plain = make_engine(), make_engine(tape=False)
    outputs = []
    for each in (engine, plain):
        ids = add(each, 2, length=240, max_tokens=40)
        for _ in range(5):
            each.step()
        ids += add(each, 9, max_tokens=20)
        each.run()
        outputs.append([each.output(name).outputs[0].token_ids for name in ids])
    assert outputs[0] == outputs[1]
    tapes = tapes_of(engine)
    assert tapes.captures == 3  # 2 rows; 11 rows; tables of more than 64 blocks
    assert tapes.latest is not None
    assert (tapes.latest.buffers.rows, tapes.latest.buffers.width) == (16, 128)
    assert plain.runner.tapes is None
    assert plain.runner.describe()["mode"] == "eager"


def test_what_a_tape_does_not_do_runs_eagerly_and_says_so() -> None:
    engine = make_engine()
    [first] = add(engine, 1, max_tokens=100)
    for _ in range(4):
        engine.step()
    tapes = tapes_of(engine)
    replays = tapes.replays
    assert replays == 2
    with probe(engine.model, {"layers.0": lambda stream: stream * 2}):
        engine.step()
    other = engine.add([3, 4, 5], greedy(prompt_logprobs=1))
    engine.step()
    engine.step()
    engine.abort(other)
    engine.swap(backend="sdpa")
    engine.step()
    assert tapes.replays == replays
    assert tapes.eager == {
        "not every row decodes": 2,
        "a hook (a probe) sits on the model": 1,
        "a row brings embeddings or asks for more than tokens": 1,
        "the sdpa backend cannot be recorded": 1,
    }
    assert engine.runner.describe()["mode"] == "eager"
    engine.swap(backend="native")
    engine.step()
    engine.step()
    assert tapes.captures == 2
    assert tapes.describe()["eager because"] == dict(tapes.eager)
    assert "replays" in engine.runner.describe()["mode"]
    engine.abort(first)


def test_weights_changed_in_place_and_replaced() -> None:
    """In place a tape sees by itself; a replaced tensor or module is noticed."""
    model = make_model()
    engines = [make_engine(model, tape=choice) for choice in (False, True)]
    for engine in engines:
        add(engine, 2, max_tokens=60)
    tapes = tapes_of(engines[1])

    def steps(captures: int) -> None:
        for _ in range(4):
            plain, taped = (engine.step().tokens for engine in engines)
            assert [t.token_id for t in plain] == [t.token_id for t in taped]
        assert tapes.captures == captures

    down: Any = model.get_submodule("layers.1.mlp.down_proj")
    steps(1)
    down.weight.mul_(-3)
    steps(1)
    down.weight.data = torch.randn(32, 24)
    steps(2)
    down.weight = torch.nn.Parameter(torch.randn(32, 24), requires_grad=False)
    steps(3)
    for engine in engines:
        engine.discard(list(engine.requests))


class Doubling(torch.nn.Module):
    """What quantization or an adapter may put in a layer's place: torch computes in it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, ctx: Any) -> Tensor:
        out: Tensor = self.inner(x, ctx) * 2
        return out


def test_a_model_that_torch_computes_in_runs_eagerly() -> None:
    model = make_model()
    engine = make_engine(model)
    add(engine, 2, max_tokens=40)
    for _ in range(4):
        engine.step()
    layer: Any = model.get_submodule("layers.0")
    original = layer.mlp
    layer.mlp = Doubling(original)
    tapes = tapes_of(engine)
    replays = tapes.replays
    for _ in range(4):
        engine.step()
    assert tapes.replays == replays
    assert tapes.eager["decodes cannot be recorded: torch computes aten.mul.Tensor"] == 4
    layer.mlp = original
    for _ in range(4):
        engine.step()
    assert tapes.replays == replays + 3
    layer.mlp = Doubling(original)
    strict = make_engine(model, tape=True)
    add(strict, 1)
    strict.step()
    with pytest.raises(NotRecordable, match="torch computes"):
        strict.step()
    for each in (engine, strict):
        each.discard(list(each.requests))


def test_work_that_a_recording_cannot_see_is_found_by_comparing() -> None:
    """numpy is out of torch's sight; the first replay gives other bits than the pass."""
    model = make_model()
    layer: Any = model.get_submodule("layers.0.mlp")
    forward = layer.forward

    def negating(x: Tensor, ctx: Any) -> Tensor:
        out: Tensor = forward(x, ctx)
        array = out.numpy()
        array *= -1
        return out

    layer.forward = negating
    engine, plain = make_engine(model), make_engine(model, tape=False)
    outputs = [each.generate([[1, 2, 3]], greedy())[0].outputs[0] for each in (engine, plain)]
    assert outputs[0].token_ids == outputs[1].token_ids
    assert tapes_of(engine).replays == 0
    assert "does not give what the pass" in next(reversed(tapes_of(engine).eager))


def test_dynamic_rope_runs_eagerly() -> None:
    scaling = RopeScaling("dynamic", 2.0, original_context=16)
    engine = make_engine(make_model(rope_scaling=scaling))
    add(engine, 2)
    engine.run()
    assert tapes_of(engine).replays == 0


def test_close_frees_the_tape() -> None:
    engine = make_engine()
    add(engine, 3)
    engine.run()
    held = tapes_of(engine).latest
    assert held is not None
    gone = [weakref.ref(held.tape), weakref.ref(held.buffers)]
    del held
    engine.close()
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_results_share_memory() -> None:
    """Layers take turns in the same memory, as they do where Python frees it in between."""
    held = {}
    for layers in (2, 6):
        config = ModelConfig("LlamaForCausalLM", 50, 32, 24, layers, 2, 1, 16, context=96)
        model = LlamaForCausalLM(config)
        model.init_weights(std=0.3)
        engine = make_engine(model.requires_grad_(False))
        add(engine, 3)
        engine.run()
        latest = tapes_of(engine).latest
        assert latest is not None
        assert latest.tape.num_calls == 2 + 8 * layers + 1
        held[layers] = latest.tape.num_bytes
    assert held[2] == held[6]


@pytest.mark.parametrize("tape", ["always", 1, None])
def test_an_unknown_choice_is_refused(tape: Any) -> None:
    with pytest.raises(ConfigError, match="tape"):
        make_engine(tape=tape)


def test_a_tape_is_refused_where_there_can_be_none() -> None:
    with pytest.raises(ConfigError, match="sdpa backend cannot be recorded"):
        make_engine(backend="sdpa", tape=True)


def test_a_number_of_rows_that_is_not_per_token_is_refused() -> None:
    tape = Tape(8)
    with pytest.raises(NotRecordable, match="9 rows"):
        tape.note("silu_mul", 0, 0, 9, 4, 0, 1)


def test_a_token_outside_the_vocabulary_raises() -> None:
    engine = make_engine()
    add(engine, 1)
    for _ in range(3):
        plan = engine.step().plan
    latest = tapes_of(engine).latest
    assert latest is not None
    with torch.inference_mode():
        latest.buffers.views["token_ids"][0] = 50
    with pytest.raises(IndexError, match="outside the embedding"):
        latest.tape.replay(len(plan.sequences))
    engine.discard(list(engine.requests))
