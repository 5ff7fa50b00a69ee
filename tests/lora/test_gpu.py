"""Adapters on a GPU: kernels in CUDA graphs give what merged models do, while adapters move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from drive import greedy
from random_adapters import random_adapter
from tiny import random_prompts

from workbench.engine import Engine
from workbench.lora import merge
from workbench.models import DecoderLM

pytestmark = pytest.mark.gpu
# rank, and the head, the embedding, DoRA
KINDS: tuple[tuple[int, dict[str, bool]], ...] = (
    (4, {}),
    (7, {}),
    (3, {"head": True}),
    (1, {}),
    (3, {"head": True, "embedding": True}),
    (4, {"head": True, "dora": True}),
    (2, {"head": True, "embedding": True, "dora": True}),
)


def test_mixed_batches_in_graphs_are_their_merged_models(
    make_engine: Callable[..., Engine], model_of: Callable[..., DecoderLM]
) -> None:
    """Few rank rows: adapters come and go, and captured graphs go on being right."""
    model = model_of("llama", "cuda")
    adapters = [random_adapter(model, i, rank, **kind) for i, (rank, kind) in enumerate(KINDS)]
    prompts = random_prompts(len(KINDS) + 1, seed=5)
    expected = []
    for prompt, adapter in zip(prompts, [*adapters, None], strict=True):
        undo = None if adapter is None else merge(model, adapter)
        engine = make_engine(model, backend="triton", cuda_graphs=False, prefix_reuse=False)
        expected.append(engine.generate([prompt], greedy(12))[0].outputs[0].token_ids)
        engine.close()
        if undo is not None:
            undo()
    assert len(set(map(tuple, expected))) == len(expected), "adapters change nothing"
    engine = make_engine(model, backend="triton", num_rows=14)
    for i, adapter in enumerate(adapters):
        engine.loras.load(f"a{i}", adapter)
    lora = [*(f"a{i}" for i in range(len(KINDS))), None]
    for _ in range(2):
        outputs = engine.generate(prompts, greedy(12), lora=lora)
        assert [output.outputs[0].token_ids for output in outputs] == expected
    graphs = engine.runner.graphs
    assert graphs is not None
    assert graphs.replays > 10
    assert "an adapter changes the embedding" in graphs.eager
    assert not any("capture failed" in why for why in graphs.eager)


def test_a_graph_serves_adapters_that_were_loaded_after_it(
    make_engine: Callable[..., Engine], model_of: Callable[..., DecoderLM]
) -> None:
    model = model_of("llama", "cuda")
    engine = make_engine(model, backend="triton", num_rows=24, prefix_reuse=False)
    graphs = engine.runner.graphs
    assert graphs is not None
    prompt, found, captures = random_prompts(2, 3)[1], [], []
    for seed in range(6):
        engine.loras.load(f"x{seed}", random_adapter(model, seed, 4))
        output = engine.generate([prompt], greedy(8), lora=f"x{seed}")[0]
        found.append(output.outputs[0].token_ids)
        captures.append(graphs.captures)
    assert len(set(map(tuple, found))) == 6, "the graph goes on with old adapters"
    # The prompt's pass is captured too, once its size has come often enough.
    assert captures[:3] == captures[:1] * 3, "a load makes no graph stale"
    assert captures[3:] == [captures[0] + 1] * 3, "a load makes no graph stale"


def test_graphs_are_captured_anew_where_cache_and_adapters_are_then(
    make_engine: Callable[..., Engine], model_of: Callable[..., DecoderLM]
) -> None:
    """Memory goes from adapters to the cache and back while requests run."""
    model, found = model_of("llama", "cuda"), []
    for rows in ((), (22, 26, 24)):
        engine = make_engine(model, backend="triton", num_rows=24, num_blocks=80)
        for seed in range(3):
            engine.loras.load(f"x{seed}", random_adapter(model, seed, 4))
        prompts, lora = random_prompts(4, 3), ["x0", None, "x1", "x2"]
        names = [engine.add(p, greedy(30), lora=u) for p, u in zip(prompts, lora, strict=True)]
        for count in rows:
            for _ in range(5):
                engine.step()
            engine.rebalance(lora_rows=count)
        engine.run()
        found.append([engine.output(name).outputs[0].token_ids for name in names])
    assert found[0] == found[1]


def test_experts_take_the_adapters_of_their_own_tokens(
    make_engine: Callable[..., Engine], model_of: Callable[..., DecoderLM]
) -> None:
    """Eagerly: what a router says decides the sizes."""
    model, expected = model_of("mixtral", "cuda"), []
    adapters = [random_adapter(model, i, 3, head=True, dora=i == 1) for i in range(2)]
    prompts = random_prompts(3, 5)
    for prompt, adapter in zip(prompts, [*adapters, None], strict=True):
        undo = None if adapter is None else merge(model, adapter)
        engine = make_engine(model, backend="triton", prefix_reuse=False)
        expected.append(engine.generate([prompt], greedy(12))[0].outputs[0].token_ids)
        engine.close()
        if undo is not None:
            undo()
    engine = make_engine(model, backend="triton")
    assert engine.runner.graphs is None
    for i, adapter in enumerate(adapters):
        engine.loras.load(f"a{i}", adapter)
    outputs = engine.generate(prompts, greedy(12), lora=["a0", "a1", None])
    assert [output.outputs[0].token_ids for output in outputs] == expected
