"""The manager: loading, tiers, pins, waiting for room, unloading what is in use; named errors."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drive import greedy
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_prompts

from workbench.engine import Engine
from workbench.errors import AdapterError, AdapterInUse, ConfigError, RequestError
from workbench.events import AdapterAwaited, AdapterMoved, AdapterUnloaded, Event
from workbench.lora import LoRAManager, store
from workbench.lora.names import parse_uses
from workbench.lora.turns import LIMIT
from workbench.models import DecoderLM

MakeEngine = Callable[..., Engine]
PROMPT = [5, 6, 7, 8]
USES = ["a", "b", "c", None]


@pytest.fixture
def engine(make_engine: MakeEngine, adapter_of: Callable[..., Path]) -> Engine:
    """An engine with room for two adapters of rank 4, and three of them: a, b and c."""
    engine = make_engine(num_rows=8)
    for seed, name in enumerate("abc"):
        engine.loras.load(name, adapter_of(seed=seed))
    return engine


def tiers(engine: Engine) -> dict[str, str]:
    return {info.name: info.tier for info in engine.loras.list()}


def watch(engine: Engine, *kinds: type[Event]) -> list[Any]:
    seen: list[Any] = []
    engine.bus.subscribe(lambda event: seen.append(event) if isinstance(event, kinds) else None)
    return seen


def test_the_least_recently_used_makes_way(engine: Engine) -> None:
    moved = watch(engine, AdapterMoved)
    for name in "abacb":
        engine.generate([PROMPT], greedy(3), lora=name)
    assert tiers(engine) == {"a": "host", "b": "device", "c": "device"}
    assert [(e.name, e.target, e.cause) for e in moved] == [
        ("a", "device", "wanted"),
        ("b", "device", "wanted"),
        ("b", "host", "room"),
        ("c", "device", "wanted"),
        ("a", "host", "room"),
        ("b", "device", "wanted"),
    ]
    info = engine.loras.info("a")
    assert (info.num_requests, info.hits, info.misses) == (2, 1, 1)


def test_one_that_others_wait_for_leaves_last(
    make_engine: MakeEngine, adapter_of: Callable[..., Path]
) -> None:
    """It would have to come back: c takes the place of b, which was used later than a."""
    engine = make_engine(num_rows=8, max_sequences=1)
    for seed, name in enumerate("abc"):
        engine.loras.load(name, adapter_of(seed=seed))
    for name in "ab":
        engine.generate([PROMPT], greedy(2), lora=name)
    for name in "ca":
        engine.add(PROMPT, greedy(2), lora=name)
    engine.step()
    assert tiers(engine) == {"a": "device", "b": "host", "c": "device"}
    engine.run()
    assert (engine.loras.info("a").hits, engine.loras.info("a").misses) == (1, 1)


def test_one_that_comes_back_to_other_rows_is_what_it_was(engine: Engine) -> None:
    first: dict[str, tuple[tuple[int, ...], list[int]]] = {}
    moved = 0
    for name in "abcacbabc":
        output = engine.generate([PROMPT], greedy(6), lora=name)[0].outputs[0]
        rows = engine.loras.info(name).rows
        was, tokens = first.setdefault(name, (rows, output.token_ids))
        assert output.token_ids == tokens, name
        moved += rows != was
    assert moved, "none came back to other rows"
    assert len({tuple(tokens) for _, tokens in first.values()}) == 3


def test_pinned_adapters_stay(engine: Engine) -> None:
    engine.loras.pin("a")
    for name in "bcbc":
        engine.generate([PROMPT], greedy(3), lora=name)
    assert tiers(engine)["a"] == "device"
    engine.loras.pin("b")
    with pytest.raises(ConfigError, match="adapter='c': there is no room for it on the device"):
        engine.loras.pin("c")
    with pytest.raises(ConfigError, match="is pinned"):
        engine.loras.evict("a")
    engine.loras.unpin("a")
    engine.loras.evict("a")
    assert tiers(engine)["a"] == "host"


def test_pins_leave_room_for_requests(engine: Engine) -> None:
    """Else they would wait for ever."""
    name = engine.add(PROMPT, greedy(3), lora="c")
    engine.loras.pin("a")
    with pytest.raises(ConfigError, match=r"request '.*' would find no room beside it"):
        engine.loras.pin("b")
    engine.run()
    assert engine.output(name).finished
    engine.loras.pin("b")
    with pytest.raises(RequestError, match="takes 4 of 0 rank rows that are not pinned"):
        engine.add(PROMPT, greedy(3), lora="c")
    engine.generate([PROMPT], greedy(3), lora="a+b")


def test_those_that_find_no_room_wait_and_others_pass(engine: Engine) -> None:
    awaited = watch(engine, AdapterAwaited)
    prompts = random_prompts(4, 1)
    names = [engine.add(p, greedy(10), lora=u) for p, u in zip(prompts, USES, strict=True)]
    engine.step()
    running = {s.request.request_id for s in engine.scheduler.running}
    assert running == {names[0], names[1], names[3]}
    engine.run()
    assert {event.cause for event in awaited} == {"no room"}
    assert all(engine.output(name).finished for name in names)


def test_nobody_waits_for_ever(engine: Engine) -> None:
    """Traffic through a and b never ends; c gets its turn."""
    for name in "ab":
        engine.add(PROMPT, greedy(6), lora=name)
    waiting = engine.add(PROMPT, greedy(2), lora="c")
    for step in range(4 * LIMIT):
        engine.add(PROMPT, greedy(6), lora="ab"[step % 2])
        engine.step()
        if engine.output(waiting).finished:
            break
    assert engine.output(waiting).finished
    assert LIMIT <= step < LIMIT + 20
    engine.run()


def test_one_that_is_given_up_keeps_no_room(engine: Engine) -> None:
    for name in "ab":
        engine.add(PROMPT, greedy(100), lora=name)
    waiting = engine.add(PROMPT, greedy(2), lora="c")
    for _ in range(LIMIT + 2):
        engine.step()
    engine.abort(waiting)
    late = engine.add(PROMPT, greedy(2), lora="a")
    engine.step()
    assert engine.output(late).outputs[0].token_ids
    engine.run()


def test_unloading_one_in_use_refuses_or_waits(engine: Engine) -> None:
    gone = watch(engine, AdapterUnloaded)
    name = engine.add(PROMPT, greedy(8), lora="a:0.5+b", request_id="mine")
    engine.step()
    with pytest.raises(AdapterInUse, match=r"adapter='a': in use by 1 request\(s\): mine"):
        engine.loras.unload("a")
    engine.loras.unload("a", wait=True)
    with pytest.raises(RequestError, match="lora='a': is being unloaded"):
        engine.add(PROMPT, lora="a")
    assert engine.loras.info("a").leaving
    engine.run()
    engine.generate([PROMPT], greedy(1))
    assert "a" not in engine.loras
    assert [event.name for event in gone] == ["a"]
    assert engine.output(name).outputs[0].finish_reason == "length"
    engine.loras.unload("c")
    assert list(tiers(engine)) == ["b"]


def test_paused_requests_keep_their_adapter_known_and_give_up_its_room(engine: Engine) -> None:
    name = engine.add(PROMPT, greedy(8), lora="a")
    engine.step()
    engine.pause(name, release=True)
    engine.generate([PROMPT] * 2, greedy(2), lora=["b", "c"])
    assert tiers(engine)["a"] == "host"
    with pytest.raises(AdapterInUse):
        engine.loras.unload("a")
    engine.resume(name)
    engine.run()
    assert tiers(engine)["a"] == "device"


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ("x", r"lora='x': is not loaded\. Loaded: a, b, c\."),
        ("a+x:2", "lora='x': is not loaded"),
        ("", "is no name of an adapter"),
        (7, "is no name of an adapter"),
        ("a:", "'a:' is no adapter with a factor"),
        ("a:nan", "is no adapter with a factor"),
        ("a:1e999", "is no adapter with a factor"),
        ("../a", "is no adapter with a factor"),
        ("a+b+c", r"takes 12 of 8 rank rows that are not pinned"),
    ],
)
def test_requests_that_cannot_run(engine: Engine, lora: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        engine.add(PROMPT, lora=lora)
    assert not engine.has_work
    assert not engine.requests


def test_one_that_stores_modules_whole_goes_alone(
    engine: Engine, adapter_of: Callable[..., Path]
) -> None:
    engine.loras.load("w", adapter_of("saved head"))
    for lora in ("w:0.5", "w+a"):
        with pytest.raises(RequestError, match="neither scaled nor combined"):
            engine.add(PROMPT, lora=lora)
    engine.generate([PROMPT], greedy(2), lora="w")


def test_dora_is_scaled_but_not_combined(engine: Engine, adapter_of: Callable[..., Path]) -> None:
    engine.loras.load("d", adapter_of("dora"))
    with pytest.raises(RequestError, match=r"lora='a\+d:0.5': d is a DoRA adapter.*not combined"):
        engine.add(PROMPT, lora="a+d:0.5")
    engine.generate([PROMPT], greedy(2), lora="d:0.5")


def test_gains_have_rows_for_all_variants_at_once(
    make_engine: MakeEngine, adapter_of: Callable[..., Path]
) -> None:
    """More than there are at first; and what is gone gives its row to another."""
    engine = make_engine(backend="native")
    for seed in range(3):
        engine.loras.load(f"d{seed}", adapter_of("dora", seed=seed))
    lora = [f"d{seed}:{factor}" for factor in (1, 0.5, 1.5, -1) for seed in range(3)]
    together = engine.generate([PROMPT] * 12, greedy(6), lora=lora)
    gains = engine.loras.slots.table.gains
    assert len(gains.tensors.layers) == 8
    assert gains.num_bytes == 16 * 4 * sum(g.gain.shape[1] for g in gains.tensors.layers.values())
    for uses, output in zip(lora, together, strict=True):
        alone = engine.generate([PROMPT], greedy(6), lora=uses)[0]
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids, uses
    for name in ("d0", "d1"):
        engine.loras.unload(name)
    assert sum(place >= 0 for place in gains.tensors.places) == 4


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a" * 65, None, "a b", "a:b", "a+b"])
def test_names_that_are_none(model: DecoderLM, adapter_of: Callable[..., Path], name: Any) -> None:
    with pytest.raises(ConfigError, match="is no name for an adapter"):
        LoRAManager(model).load(name, adapter_of())


def test_what_cannot_be_loaded(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path, model: DecoderLM
) -> None:
    with pytest.raises(ConfigError, match="adapter='a': is loaded already"):
        engine.loras.load("a", adapter_of())
    with pytest.raises(AdapterError, match="is no folder"):
        engine.loras.load("d", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="adapter='d': takes 7 of 6 rank rows"):
        LoRAManager(model, num_rows=6).load("d", adapter_of("patterns"))
    with pytest.raises(ConfigError, match="adapter='d': is not loaded"):
        engine.loras.unload("d")
    for setting in ({"num_rows": 0}, {"host_bytes": -1}, {"max_rank": "4"}):
        with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
            LoRAManager(model, **setting)


def test_paths_outside_the_root(
    model: DecoderLM, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    inside = tmp_path / "root" / "x"
    shutil.copytree(adapter_of(), inside)
    loras = LoRAManager(model, root=tmp_path / "root")
    (tmp_path / "root" / "link").symlink_to(adapter_of())
    for path in (adapter_of(), tmp_path / "root" / ".." / "other", tmp_path / "root" / "link"):
        with pytest.raises(ConfigError, match="lies outside"):
            loras.load("x", path)
    assert loras.load("x", inside).tier == "host"


def test_host_memory_is_bounded_and_the_disk_read_again(
    make_engine: MakeEngine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    size = make_engine().loras.load("a", adapter_of()).num_bytes
    engine = make_engine(num_rows=4, host_bytes=2 * size)
    for seed, name in enumerate("abcd"):
        shutil.copytree(adapter_of(seed=seed), tmp_path / name)
        engine.loras.load(name, tmp_path / name)
    assert tiers(engine) == {"a": "disk", "b": "disk", "c": "host", "d": "host"}
    first = [engine.generate([PROMPT], greedy(4), lora=name)[0].outputs[0] for name in "abcd"]
    again = [engine.generate([PROMPT], greedy(4), lora=name)[0].outputs[0] for name in "abcd"]
    assert [o.token_ids for o in first] == [o.token_ids for o in again]
    assert engine.loras.store.num_host_bytes <= 2 * size


def test_a_disk_read_holds_up_nobody(
    make_engine: MakeEngine, adapter_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a thread reads, others run; who waits for it starts when it is there."""
    may_read, read = threading.Event(), store.read_adapter

    def slow(*args: Any, **settings: Any) -> Any:
        assert may_read.wait(60)
        return read(*args, **settings)

    size = make_engine().loras.load("a", adapter_of()).num_bytes
    engine = make_engine(num_rows=8, host_bytes=size)
    for seed, name in enumerate("ab"):
        engine.loras.load(name, adapter_of(seed=seed))
    monkeypatch.setattr(store, "read_adapter", slow)
    awaited = watch(engine, AdapterAwaited)
    other = engine.add(PROMPT, greedy(60), lora="b")
    engine.step()
    waiting = engine.add(PROMPT, greedy(2), lora="a")
    assert tiers(engine)["a"] == "disk"
    for _ in range(3):
        engine.step()
    assert [event.cause for event in awaited] == ["being read"] * 3
    assert len(engine.output(other).outputs[0].token_ids) == 4
    may_read.set()
    engine.run()
    assert engine.output(waiting).outputs[0].finish_reason == "length"


def test_the_next_in_line_are_read_before_there_is_room(
    make_engine: MakeEngine, adapter_of: Callable[..., Path]
) -> None:
    """As many as half of host memory holds, in the queue's order."""
    size = make_engine().loras.load("a", adapter_of()).num_bytes
    engine = make_engine(num_rows=4, host_bytes=4 * size)
    for seed, name in enumerate("abcdefgh"):
        engine.loras.load(name, adapter_of(seed=seed))
    engine.add(PROMPT, greedy(60), lora="h")
    engine.step()
    for name in "bdac":
        engine.add(PROMPT, greedy(2), lora=name)
    engine.step()
    for _ in range(4):  # what is read by then is taken in, and would let others be read
        for future in list(engine.loras.store._reading.values()):
            future.result(60)
        engine.step()
    found = tiers(engine)
    assert [found[name] for name in "hbdac"] == ["device", "host", "host", "disk", "disk"]
    assert engine.loras.store.num_host_bytes <= 4 * size
    engine.run()


@pytest.mark.parametrize("damage", ["gone", "other"])
def test_an_adapter_that_is_lost_on_disk_ends_its_requests_alone(
    make_engine: MakeEngine, adapter_of: Callable[..., Path], tmp_path: Path, damage: str
) -> None:
    size = make_engine().loras.load("a", adapter_of()).num_bytes
    engine = make_engine(num_rows=8, host_bytes=size)
    shutil.copytree(adapter_of(seed=0), tmp_path / "a")
    engine.loras.load("a", tmp_path / "a")
    engine.loras.load("b", adapter_of(seed=1))
    shutil.rmtree(tmp_path / "a")
    if damage == "other":
        shutil.copytree(adapter_of(seed=2), tmp_path / "a")
    names = [engine.add(PROMPT, greedy(3), lora=name) for name in "ab"]
    engine.run()
    lost, well = (engine.output(name).outputs[0] for name in names)
    assert lost.finish_reason == "error"
    assert {"gone": "is no folder", "other": "has changed since"}[damage] in str(lost.error)
    assert well.finish_reason == "length"


def test_loading_while_requests_run_changes_none(
    make_engine: MakeEngine, adapter_of: Callable[..., Path]
) -> None:
    """Also where rank rows grow and move, and a tape has been recorded over them."""
    for backend in ("sdpa", "native"):
        expected = None
        for hot in (False, True):
            engine = make_engine(backend=backend)
            engine.loras.load("a", adapter_of())
            names = [engine.add(p, greedy(30), lora="a") for p in random_prompts(3, 4)]
            for step in range(40):
                if hot and step % 4 == 1:
                    engine.loras.load(f"x{step}", adapter_of("patterns", seed=step), pin=True)
                engine.step()
            engine.run()
            found = [engine.output(name).outputs[0].token_ids for name in names]
            expected = expected or found
            assert found == expected
            assert engine.loras.slots.pool.num_rows > 32 or not hot


@given(st.text(max_size=12))
def test_any_text_is_a_use_or_refused(text: str) -> None:
    try:
        uses = parse_uses(text)
    except RequestError:
        return
    assert uses
    assert all(name and scale == scale for name, scale in uses.items())


@pytest.mark.parametrize("seed", range(3))
def test_a_soak_of_everything_leaves_nothing_behind(
    make_engine: MakeEngine, adapter_of: Callable[..., Path], seed: int
) -> None:
    """Load, unload, pin, evict, abort, pause and traffic at random; `make_engine` checks the end,
    and every request that ran to its end has the tokens of its adapter alone."""
    source, folders = random.Random(seed), [adapter_of(seed=i) for i in range(5)]
    size = make_engine().loras.load("a", folders[0]).num_bytes
    prompts = random_prompts(3, 17, longest=12)
    alone = make_engine(prefix_reuse=False)
    for i, folder in enumerate(folders):
        alone.loras.load(f"s{i}", folder)
    expected: dict[Any, list[int]] = {}

    def tokens_alone(prompt: int, lora: str | None) -> list[int]:
        if (prompt, lora) not in expected:
            output = alone.generate([prompts[prompt]], greedy(12), lora=lora)[0]
            expected[prompt, lora] = output.outputs[0].token_ids
        return expected[prompt, lora]

    engine = make_engine(
        backend=["sdpa", "native"][seed % 2],
        num_rows=[8, 12, 9][seed],
        host_bytes=3 * size,
        num_blocks=16,
        block_size=8,
        max_sequences=4,
    )
    asked: dict[str, tuple[int, str | None]] = {}
    for _ in range(250):
        act = source.randrange(12)
        number = source.randrange(5)
        name, loras = f"s{number}", engine.loras
        try:
            if act <= 1:
                loras.load(name, folders[number])
            elif act == 2:
                loras.unload(name, wait=source.random() < 0.7)
            elif act == 3:
                (loras.pin if source.random() < 0.4 else loras.unpin)(name)
            elif act == 4:
                loras.evict(name)
            elif act == 5 and asked:
                request = source.choice(list(asked))
                engine.abort(request)
                del asked[request]
            elif act == 6 and asked:
                engine.pause(source.choice(list(asked)), release=source.random() < 0.5)
            elif act == 7:
                for request in list(asked):
                    if not engine.output(request).finished:
                        engine.resume(request)
            elif act <= 9:
                prompt, lora = source.randrange(3), source.choice([name, f"{name}:0.5", None])
                asked[engine.add(prompts[prompt], greedy(12), lora=lora)] = prompt, lora
        except (ConfigError, RequestError, AdapterInUse, RuntimeError):
            pass
        engine.step()
    for info in engine.loras.list():
        engine.loras.unpin(info.name)
    for request in asked:
        if not engine.output(request).finished:
            engine.resume(request)
    engine.run()
    done = 0
    for request, (prompt, lora) in asked.items():
        output = engine.output(request).outputs[0]
        assert output.finish_reason == "length", output.error
        assert output.token_ids == tokens_alone(prompt, lora), lora
        done += 1
    assert done > 10
    for info in engine.loras.list():
        engine.loras.unload(info.name, wait=True)
    engine.step()
    assert len(engine.loras) == 0
    assert engine.loras.slots.pool.num_free == engine.loras.slots.pool.num_rows
