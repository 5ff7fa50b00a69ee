"""Memory that goes from adapters to the cache and back, between steps, with traffic running."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drive import drawn, greedy
from tiny import random_prompts

from workbench.cache import KVCache
from workbench.engine import Engine
from workbench.errors import ConfigError, RequestError, TraceError
from workbench.events import MemoryRebalanced
from workbench.trace import Trace

MakeEngine = Callable[..., Engine]
LORA = ["a", None, "b", "a:0.5", "c", None, "b"]


@pytest.fixture
def loaded(make_engine: MakeEngine, adapter_of: Callable[..., Path]) -> MakeEngine:
    """Build an engine with 24 rank rows, and adapters a, b and c of rank 4 each."""

    def make(**settings: Any) -> Engine:
        engine = make_engine(num_rows=24, **settings)
        for seed, name in enumerate("abc"):
            engine.loras.load(name, adapter_of(seed=seed))
        return engine

    return make


def start(engine: Engine, count: int = len(LORA), max_tokens: int = 24) -> list[str]:
    """Queue requests of which every second one is drawn, through adapters or none."""
    params = [(drawn(i, max_tokens) if i % 2 else greedy(max_tokens)) for i in range(count)]
    prompts = random_prompts(count, 3)
    return [
        engine.add(p, own, lora=u) for p, own, u in zip(prompts, params, LORA[:count], strict=True)
    ]


def tokens(engine: Engine, names: list[str]) -> list[list[int]]:
    return [engine.output(name).outputs[0].token_ids for name in names]


@pytest.mark.parametrize("backend", ["sdpa", "native"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_tokens_stay_through_it(loaded: MakeEngine, backend: str, preemption: str) -> None:
    """Rows up and down while requests run: what moves, is preempted or swapped goes on."""
    plain = loaded(backend=backend, num_blocks=40, block_size=4)
    names = start(plain)
    plain.run()
    expected = tokens(plain, names)
    settings = {"host_cache_bytes": 1 << 20} if preemption == "swap" else {}
    settings |= {"num_blocks": 40, "block_size": 4}
    engine = loaded(backend=backend, preemption=preemption, **settings)
    told: list[Any] = []
    engine.bus.subscribe(lambda e: told.append(e) if isinstance(e, MemoryRebalanced) else None)
    names, sizes, bytes_ = start(engine), [], []
    for rows in (28, 20, 22, 30, 24):
        for _ in range(3):
            engine.step()
        sizes.append(engine.rebalance(lora_rows=rows))
        bytes_.append(engine.cache.num_bytes + rows * engine.loras.store.packer.row_bytes())
        assert engine.loras.slots.pool.num_rows == rows
        assert engine.cache.num_blocks == engine.cache.tensor.shape[2] == sizes[-1].num_blocks
        engine.cache.check()
    assert [(e.num_rows, e.num_blocks) for e in told] == sizes
    counts = [size.num_blocks for size in sizes]
    assert counts[3] < counts[0] < counts[4] == 40 < counts[2] < counts[1]
    block = engine.cache.num_bytes // 40
    assert all(bytes_[-1] - block < total <= bytes_[-1] for total in bytes_), "one budget"
    engine.run()
    assert tokens(engine, names) == expected
    assert engine.cache.stats().recomputed + engine.cache.stats().swapped > 0, "none was in the way"


@pytest.mark.parametrize(("rows", "lora"), [(22, None), (26, None), (23, "a")])
def test_a_tape_does_not_go_on_where_cache_and_adapters_were(
    loaded: MakeEngine, rows: int, lora: str | None
) -> None:
    """Nor do those that come later, whose prompts are no tape's. A row less leaves all blocks."""
    found = []
    for rebalances in (False, True):
        engine = loaded(backend="native", num_blocks=80)
        engine.loras.pin("c")
        tapes = engine.runner.tapes
        assert tapes is not None
        prompts = random_prompts(4, 5)
        names = [engine.add(prompt, greedy(40), lora=lora) for prompt in prompts[:2]]
        for _ in range(12):
            engine.step()
        assert tapes.replays > 5
        if rebalances:
            engine.loras.unpin("c")  # the first in its rows, so that others move down
            engine.loras.evict("c")
            engine.rebalance(lora_rows=rows)
            assert (engine.cache.num_blocks == 80) == (rows == 23)
        replays = tapes.replays
        names += [engine.add(prompt, greedy(12), lora=lora) for prompt in prompts[2:]]
        engine.run()
        assert tapes.replays > replays + 10
        found.append(tokens(engine, names))
    assert found[0] == found[1]


def test_adapters_leave_for_it_the_least_used_first(loaded: MakeEngine) -> None:
    engine = loaded()
    engine.generate(random_prompts(4, 1), greedy(2), lora=["b", "a", "c", "b"])
    engine.loras.pin("a")
    expected = [engine.generate([[5, 6, 7]], greedy(6), lora=name)[0] for name in "cba"]
    engine.rebalance(lora_rows=9)
    tiers = {info.name: info.tier for info in engine.loras.list()}
    assert tiers == {"a": "device", "b": "device", "c": "host"}
    assert max(row for info in engine.loras.list() for row in info.rows) < 8, "they moved down"
    found = [engine.generate([[5, 6, 7]], greedy(6), lora=name)[0] for name in "cba"]
    for one, other in zip(expected, found, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids


@pytest.mark.parametrize("rows", [16, 28])
def test_what_is_on_its_way_arrives_before(loaded: MakeEngine, rows: int) -> None:
    """Its rows get other numbers, or lie elsewhere, as those of the others do."""
    engine = loaded()
    expected = engine.generate([[5, 6, 7]], greedy(6), lora="b")[0].outputs[0].token_ids
    engine.loras.evict("b")
    engine.loras.slots.beside = True
    engine.add([1, 2], greedy(2), lora="a")
    name = engine.add([5, 6, 7], greedy(6), lora="b")
    engine.step()
    assert any(entry.moving for entry in engine.loras.store.entries.values())
    engine.rebalance(lora_rows=rows)
    assert not any(entry.moving for entry in engine.loras.store.entries.values())
    engine.run()
    assert tokens(engine, [name]) == [expected]


def test_what_is_cached_is_found_afterwards(loaded: MakeEngine) -> None:
    engine, prompt = loaded(num_blocks=40, block_size=4), list(range(1, 40))
    engine.generate([prompt], greedy(2))
    engine.rebalance(lora_rows=12)
    assert engine.generate([prompt], greedy(2))[0].metrics.num_cached_tokens >= 36
    engine.rebalance(lora_rows=24)
    assert engine.generate([prompt], greedy(2))[0].metrics.num_cached_tokens >= 36
    before = engine.cache.num_blocks
    rows = 24 + (before - 12) * engine.cache.num_bytes // before // row_bytes(engine)
    assert 12 <= engine.rebalance(lora_rows=rows).num_blocks < 16, "in whole rows"
    engine.cache.check()


def row_bytes(engine: Engine) -> int:
    return engine.loras.store.packer.row_bytes()


def test_what_cannot_be(loaded: MakeEngine, make_engine: MakeEngine) -> None:
    engine = loaded(num_blocks=40, block_size=4)
    names = start(engine, 4)
    engine.step()
    engine.loras.pin("c")
    before = engine.loras.slots.pool.num_rows, engine.cache.num_blocks, engine.cache.tensor
    for rows, says in (
        (0, "lora_rows=0: must be a whole number of at least 1"),
        (3, "adapter 'a' alone takes 4"),
        (11, "what is pinned or running takes 12: a, b, c"),
        (10**6, "leaves no block of the 40 that there are"),
        (24 + 36 * engine.cache.num_bytes // 40 // row_bytes(engine), "request '.*' could not go"),
    ):
        with pytest.raises(ConfigError, match=says):
            engine.rebalance(lora_rows=rows)
    now = engine.loras.slots.pool.num_rows, engine.cache.num_blocks, engine.cache.tensor
    assert now[:2] == before[:2]
    assert now[2] is before[2]
    engine.run()
    assert all(engine.output(name).finished for name in names)
    with pytest.raises(ConfigError, match="makes rank rows as adapters come"):
        make_engine().rebalance(lora_rows=4)
    engine.add([1, 2, 3], greedy(140))
    state = engine.checkpoint()
    engine.run()
    engine.rebalance(lora_rows=24 + 30 * engine.cache.num_bytes // 40 // row_bytes(engine))
    with pytest.raises(RequestError, match="the whole cache has"):
        engine.restore(state)


def test_requests_that_wait_need_their_adapters_at_once(loaded: MakeEngine) -> None:
    engine = loaded(max_sequences=1)
    engine.add([1, 2], greedy(4))
    name = engine.add([1, 2], greedy(4), lora="a:0.5+b:0.5")
    engine.step()
    with pytest.raises(ConfigError, match=f"request '{name}', beside what is pinned, takes 8"):
        engine.rebalance(lora_rows=7)
    engine.rebalance(lora_rows=8)
    engine.run()


def test_a_cache_that_finds_no_room_stays_as_it_was(
    loaded: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    engine = loaded(num_blocks=40, block_size=4)
    names, allocate = start(engine), KVCache.allocate
    engine.step()
    expected = engine.cache.tensor.clone()

    def fail_for_more(cache: KVCache, *args: Any) -> None:
        if cache.num_blocks > 40:
            raise torch.OutOfMemoryError("none left")
        allocate(cache, *args)

    monkeypatch.setattr(KVCache, "allocate", fail_for_more)
    with pytest.raises(ConfigError, match=r"no room for \d\d blocks in one piece"):
        engine.rebalance(lora_rows=12)
    held = engine.cache.blocks.groups[0].pool.held
    found, expected = (tensor[:, :, held] for tensor in (engine.cache.tensor, expected))
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert expected.nan_to_num().any()
    assert engine.cache.num_blocks == 40
    engine.run()
    assert all(engine.output(name).finished for name in names)


def test_a_trace_says_when_it_has_no_place_for_more(loaded: MakeEngine) -> None:
    engine = loaded(num_blocks=40, block_size=4)
    with Trace.record(engine) as trace:
        engine.generate([[1, 2, 3]], greedy(4), lora="a")
        engine.rebalance(lora_rows=32)
        engine.generate([[1, 2, 3]], greedy(4), lora="a")
    assert trace.at(trace.steps[-1]).num_used == 0
    with Trace.record(engine) as trace:
        engine.rebalance(lora_rows=24)
        engine.generate([[1, 2, 3]], greedy(4), lora="a")
    with pytest.raises(TraceError, match="record, or open the view, anew"):
        trace.at(trace.steps[-1])
