"""Adapters come to the device while others run: nobody reads them before they are there."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drive import greedy
from tiny import random_prompts

from workbench.engine import Engine
from workbench.events import AdapterMoved, Event
from workbench.lora import packing
from workbench.lora.pool import Place, Resident

PROMPTS = random_prompts(3, seed=4)


class Road:
    """Holds what is on its way until it is let through."""

    def __init__(self, engine: Engine) -> None:
        self.open, pool = threading.Event(), engine.loras.slots.pool
        write = pool.write

        def held(place: Place) -> Resident:
            assert self.open.wait(60), "nobody let it through"
            return write(place)

        pool.write = held  # type: ignore[method-assign]
        engine.loras.slots.beside = True


@pytest.fixture
def engine(make_engine: Callable[..., Engine], adapter_of: Callable[..., Path]) -> Engine:
    """An engine with room for two of three adapters of rank 4."""
    engine = make_engine(num_rows=8, prefix_reuse=False)
    for seed, name in enumerate("abc"):
        engine.loras.load(name, adapter_of(seed=seed))
    return engine


def expected(make_engine: Callable[..., Engine], adapter_of: Callable[..., Path]) -> list[int]:
    engine = make_engine(prefix_reuse=False)
    engine.loras.load("a", adapter_of(seed=0))
    [output] = engine.generate([PROMPTS[1]], greedy(6), lora="a")
    return output.outputs[0].token_ids


def test_others_run_until_it_is_there(
    engine: Engine, make_engine: Callable[..., Engine], adapter_of: Callable[..., Path]
) -> None:
    road, moved = Road(engine), []
    engine.bus.subscribe(lambda e: moved.append(e) if isinstance(e, AdapterMoved) else None)
    runs = engine.add(PROMPTS[0], greedy(60))
    engine.step()
    comes = engine.add(PROMPTS[1], greedy(6), lora="a")
    for number in range(2, 6):
        engine.step()
        assert engine.find(runs).num_output_tokens == number
        assert engine.find(comes).num_output_tokens == 0
        assert engine.loras.info("a").tier == "host"
    assert not moved
    road.open.set()
    engine.loras.slots.settle()
    engine.run()
    assert engine.output(comes).outputs[0].token_ids == expected(make_engine, adapter_of)
    info, totals = engine.loras.info("a"), engine.loras.slots.mover.totals
    assert (info.hits, info.misses, totals.count) == (0, 1, 1)
    assert 0 < info.seconds["to device"] == totals.seconds


def test_what_came_is_told_at_the_next_step(engine: Engine) -> None:
    road, moved = Road(engine), []
    heard: list[Event] = moved
    engine.bus.subscribe(lambda e: heard.append(e) if isinstance(e, AdapterMoved) else None)
    engine.add(PROMPTS[0], greedy(60))
    engine.step()
    engine.add(PROMPTS[1], greedy(2), lora="a")
    engine.step()
    move = engine.loras.store.entries["a"].moving
    assert move is not None
    road.open.set()
    move.arrival.result(60)
    assert not heard
    engine.run()
    [fact] = moved
    assert (fact.name, fact.source, fact.target, fact.cause) == ("a", "host", "device", "wanted")
    assert fact.rows == engine.loras.info("a").rows


def test_rows_on_their_way_are_nobody_elses(engine: Engine) -> None:
    """Two adapters fill the device; the third finds no room before one of them is there."""
    road = Road(engine)
    engine.add(PROMPTS[0], greedy(40))
    engine.step()
    for name in "abc":
        engine.add(PROMPTS[1], greedy(3), lora=name)
    engine.step()
    moving = [e.name for e in engine.loras.store.entries.values() if e.moving is not None]
    assert moving == ["a", "b"]
    assert engine.loras.slots.pool.num_free == 0
    road.open.set()
    engine.run()


@pytest.mark.parametrize("act", ["unload", "evict", "pin", "close"])
def test_by_hand_while_it_is_on_its_way(engine: Engine, act: str) -> None:
    road = Road(engine)
    engine.add(PROMPTS[0], greedy(40))
    engine.step()
    name = engine.add(PROMPTS[1], greedy(3), lora="a")
    engine.step()
    assert engine.loras.store.entries["a"].moving is not None
    engine.abort(name)
    road.open.set()
    if act == "close":
        engine.close()
        return
    getattr(engine.loras, act)("a")
    assert ("a" in engine.loras) == (act != "unload")
    taken = engine.loras.slots.pool.num_rows - engine.loras.slots.pool.num_free
    assert taken == (4 if act == "pin" else 0)
    engine.run()


def test_rows_do_not_move_under_what_is_written(
    make_engine: Callable[..., Engine], adapter_of: Callable[..., Path]
) -> None:
    """Without a bound the pool grows for the second adapter while the first is on its way."""
    engine = make_engine(prefix_reuse=False)
    for seed, name in enumerate("ab"):
        engine.loras.load(name, adapter_of(seed=seed))
    road = Road(engine)
    engine.loras.slots.pool.grow(4)
    engine.add(PROMPTS[0], greedy(40))
    engine.step()
    first = engine.add(PROMPTS[1], greedy(6), lora="a")
    engine.step()
    assert engine.loras.store.entries["a"].moving is not None
    threading.Timer(0.05, road.open.set).start()
    engine.add(PROMPTS[1], greedy(6), lora="b")
    engine.run()
    assert engine.output(first).outputs[0].token_ids == expected(make_engine, adapter_of)


def test_a_write_that_fails_gives_its_rows_back(engine: Engine) -> None:
    slots = engine.loras.slots

    def fails(place: Place) -> Resident:
        raise MemoryError("no memory")

    slots.pool.write, slots.beside = fails, True  # type: ignore[method-assign]
    entry = slots.store.entries["a"]
    assert entry.packed is not None
    slots.put(entry, entry.packed, "wanted", wait=False)
    with pytest.raises(MemoryError):
        slots.settle()
    assert entry.moving is None
    assert slots.pool.num_free == slots.pool.num_rows


def test_a_request_is_counted_once(
    make_engine: Callable[..., Engine], adapter_of: Callable[..., Path]
) -> None:
    """It is asked for at each step until there are blocks, and starts again after a preemption."""
    engine = make_engine(num_rows=8, num_blocks=8, block_size=4, prefix_reuse=False)
    engine.loras.load("a", adapter_of(seed=0))
    for prompt in PROMPTS:
        engine.add(prompt[:9], greedy(14), lora="a")
    engine.run()
    info = engine.loras.info("a")
    assert info.num_requests == 3
    assert (info.hits, info.misses) == (0, 3)


@pytest.mark.parametrize("piece", [1, 700, 4 << 20])
def test_rows_hold_an_adapter_whatever_its_pieces(
    make_engine: Callable[..., Engine],
    adapter_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    piece: int,
) -> None:
    """In rows that lie apart too, and nothing is left of who had them before."""
    monkeypatch.setattr(packing, "_PIECE", piece)
    engine = make_engine(num_rows=16)
    for name, kind in (("a", "all linear"), ("b", "patterns"), ("c", "list")):
        engine.loras.load(name, adapter_of(kind, seed=ord(name)))
    slots, entries = engine.loras.slots, engine.loras.store.entries
    random.Random(piece).shuffle(slots.pool._free)
    for name in "abcacb":
        entry = entries[name]
        packed = entry.packed
        assert packed is not None
        counts = {1: len(packed.layers), 4 << 20: 1}
        assert piece not in counts or len(packed.pieces) == counts[piece]
        slots.put(entry, packed, "wanted", wait=True)
        rows = list(slots.find(name).rows)
        own = dict(zip(packed.layers, packed.rows, strict=True))
        for path, shape in engine.loras.store.packer.shapes.items():
            weights = slots.pool.weights.get(slots.pool.model.get_submodule(path))
            if weights is None:
                assert path not in own
                continue
            empty = torch.zeros(len(rows), shape.parts, shape.num_read), torch.zeros(1)
            for held, given in zip(weights[:2], own.get(path, empty), strict=True):
                assert torch.equal(held[rows], given.expand_as(held[rows]))
        slots.evict(entry)
