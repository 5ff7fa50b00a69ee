"""Layers that see a window: the same tokens as transformers, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from tiny import random_prompts

from workbench import events
from workbench.errors import RequestError
from workbench.trace import Trace

Folder = Callable[[str], Path]
FAMILIES = ["mistral", "qwen2-windows"]
WINDOW = 8  # of both
LONG = 50  # tokens: more than six windows
PROMPTS = [*random_prompts(3, seed=51, longest=60), [5] * WINDOW]


@torch.inference_mode()
def of_transformers(folder: Path, prompts: list[list[int]], length: int) -> list[list[int]]:
    """Return the greedy tokens of transformers' model, in float32, each prompt alone."""
    auto = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": length, "do_sample": False, "eos_token_id": None}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
        rows.append(out[0, len(prompt) :].tolist())
    return rows


@pytest.fixture(scope="module")
def expected(request: pytest.FixtureRequest) -> Callable[[str], list[list[int]]]:
    """Return transformers' tokens of PROMPTS, worked out once for a family."""
    known: dict[str, list[list[int]]] = {}
    checkpoint: Folder = request.getfixturevalue("checkpoint")

    def of(family: str) -> list[list[int]]:
        if family not in known:
            known[family] = of_transformers(checkpoint(family), PROMPTS, LONG)
        return known[family]

    return of


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"block_size": 4}, id="plain"),
        pytest.param({"block_size": 1, "num_blocks": 700}, id="blocks of 1"),
        pytest.param({"block_size": 16}, id="blocks larger than the window"),
        pytest.param({"block_size": 4, "max_batch_tokens": 7}, id="chunked"),
        pytest.param({"block_size": 4, "max_batch_tokens": 5, "num_blocks": 30}, id="preempted"),
        pytest.param({"block_size": 4, "prefix_reuse": False}, id="no reuse"),
        pytest.param({"block_size": 4, "backend": "reference"}, id="plain backend"),
        pytest.param({"block_size": 4, "backend": "native"}, id="native backend"),
        pytest.param({"block_size": 4, "chunked_prefill": False}, id="whole prompts"),
    ],
)
def test_long_generations_equal_transformers(
    make_engine: MakeEngine,
    expected: Callable[[str], list[list[int]]],
    family: str,
    settings: dict[str, Any],
) -> None:
    engine = make_engine(family, **{"num_blocks": 200, **settings})
    assert tokens_of(engine, PROMPTS, greedy(LONG)) == expected(family)
    again = tokens_of(engine, PROMPTS, greedy(LONG))
    assert again == expected(family), "with whatever is in the cache by now"


@pytest.mark.parametrize("family", FAMILIES)
def test_preemption_happens_above(
    make_engine: MakeEngine, expected: Callable[[str], list[list[int]]], family: str
) -> None:
    full = 30 if family == "qwen2-windows" else 8
    engine = make_engine(family, block_size=4, max_batch_tokens=5, num_blocks=full)
    with Trace.record(engine) as trace:
        assert tokens_of(engine, PROMPTS, greedy(LONG)) == expected(family)
    assert trace.of(events.Preempted)


@pytest.mark.parametrize("block_size", [1, 4])
def test_memory_does_not_grow_with_length(make_engine: MakeEngine, block_size: int) -> None:
    """Every layer of Mistral has a window: a sequence never holds more than that takes."""
    bound = -(-WINDOW // block_size) + 2
    engine = make_engine("mistral", block_size=block_size, max_batch_tokens=4, num_blocks=4 * bound)
    names = [engine.add(prompt[:20], greedy(120)) for prompt in PROMPTS[:3]]
    while engine.has_work:
        engine.step()
        engine.cache.check()
        decoding = [s for s in engine.scheduler.running if s.num_output_tokens > 1]
        tables = engine.cache.blocks.tables
        assert all(len(tables[s.sequence_id].block_ids) <= bound for s in decoding)
    assert [len(engine.output(name).outputs[0].token_ids) for name in names] == [120] * 3


def test_only_layers_without_a_window_hold_everything(make_engine: MakeEngine) -> None:
    engine = make_engine("qwen2-windows", block_size=4, max_batch_tokens=4)
    engine.add(PROMPTS[0], greedy(120))
    engine.run(100)
    [sequence] = engine.scheduler.running
    full, window = (group.tables[sequence.sequence_id] for group in engine.cache.blocks.groups)
    assert len(full.block_ids) == engine.cache.blocks.groups[0].blocks_for(sequence.num_computed)
    assert len(window.block_ids) <= WINDOW // 4 + 2
    assert window.stop == full.stop
    engine.run()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_is_reused_as_far_as_every_group_has_it(
    make_engine: MakeEngine, alone: Alone, family: str
) -> None:
    engine = make_engine(family, block_size=4)
    prompt = list(range(40, 81))
    parts = {"model": family}
    for tail in ([], [7, 7, 7]):
        output = engine.generate([[*prompt, *tail]], greedy(16))[0]
        assert [output.outputs[0].token_ids] == alone([[*prompt, *tail]], greedy(16), **parts)
    assert output.metrics.num_cached_tokens >= 40
    inside = [*prompt[:18], 9, 9, 9]  # its last block was let go of, and is still cached
    output = engine.generate([inside], greedy(16))[0]
    assert output.metrics.num_cached_tokens == 18
    assert [output.outputs[0].token_ids] == alone([inside], greedy(16), **parts)


def test_a_window_group_that_lost_its_blocks_ends_the_match(
    make_engine: MakeEngine, alone: Alone
) -> None:
    engine = make_engine("qwen2-windows", block_size=4)
    prompt = list(range(40, 81))
    tokens_of(engine, [prompt], greedy(4))
    full, window = engine.cache.blocks.groups
    window.clear_cached()
    found = engine.cache.blocks.lookup(prompt)
    assert (found.num_tokens, found.reason) == (0, "block 0 was evicted at step 4 by hand")
    assert full.lookup(prompt).num_tokens == 40
    assert tokens_of(engine, [prompt], greedy(30)) == alone(
        [prompt], greedy(30), model="qwen2-windows"
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block_size", [4, 16])
def test_branches_and_twins(
    make_engine: MakeEngine, alone: Alone, family: str, block_size: int
) -> None:
    engine = make_engine(family, block_size=block_size, num_blocks=1200 // block_size)
    for prompt in PROMPTS[:1]:
        [output] = engine.generate([prompt], drawn(40, 30, n=2))
        each = [drawn(40 + i, 30) for i in range(2)]
        assert [o.token_ids for o in output.outputs] == alone([prompt] * 2, each, model=family)
        name = engine.add(prompt, greedy(40))
        engine.run(25)
        twin = engine.fork(name)
        engine.run()
        [tokens] = alone([prompt], greedy(40), model=family)
        for request in (name, twin):
            assert engine.output(request).outputs[0].token_ids == tokens


def test_a_request_may_be_longer_than_a_windowed_cache(make_engine: MakeEngine) -> None:
    engine = make_engine("mistral", block_size=4, num_blocks=8, max_batch_tokens=8)
    [tokens] = tokens_of(engine, [PROMPTS[0]], greedy(150))
    assert len(tokens) == 150
    whole = make_engine("mistral", block_size=4, num_blocks=8, chunked_prefill=False)
    with pytest.raises(RequestError, match=r"for a window of 8 the whole cache has 8"):
        whole.add(PROMPTS[0], greedy(150))
