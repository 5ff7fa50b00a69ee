"""The KV cache view's log says in the browser what the trace says, forwards and backwards."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from long_run import long_run_engine, work
from tiny import VOCAB

import workbench as wb
from workbench import events
from workbench.errors import RequestError, TraceError
from workbench.trace import Trace
from workbench.trace.layout import CacheLayout, GroupLayout
from workbench.trace.state import BlockState, ReplayedState
from workbench.views import KVCacheView, recording
from workbench.views.kv_cells import block_cell, owner_of, taken_apart
from workbench.views.kv_log import MARKS

READER = Path(__file__).parent / "read_log.mjs"
SHARED = [7 + 11 * i % (VOCAB - 8) for i in range(40)]


def drive(engine: wb.Engine, source: random.Random, steps: int) -> None:
    """Work with shared prefixes, branches, forks, aborts and time travel, more than fits."""
    states = []
    for _ in range(steps):
        if source.random() < 0.4:
            prompt = [*SHARED[: source.randint(0, 30)], *source.choices(range(1, VOCAB), k=3)]
            kinds = [
                wb.SamplingParams(max_tokens=source.randint(1, 20), temperature=0, ignore_eos=True),
                wb.SamplingParams(max_tokens=source.randint(1, 9), n=3, seed=1, ignore_eos=True),
                wb.SamplingParams(max_tokens=source.randint(1, 9), beam_width=2),
            ]
            engine.add(prompt, source.choice(kinds), namespace=source.choice(["", "", "b"]))
        running = [n for n, r in engine.requests.items() if not r.finished and r.strategy is None]
        if running and source.random() < 0.1:
            engine.abort(source.choice(running))
        elif running and source.random() < 0.15:
            with suppress(RequestError):  # it has made more than that
                engine.fork(source.choice(running), wb.SamplingParams(max_tokens=30, temperature=0))
        if source.random() < 0.05:
            states.append(engine.checkpoint())
        if states and source.random() < 0.03:
            engine.restore(source.choice(states))
        engine.step()


def read(node: Any, view: KVCacheView, walk: list[int]) -> list[dict[str, Any]]:
    """Return what the browser's code says of a view at each step of a walk."""
    state = {
        "about": view.about,
        "history": base64.b64encode(view.history).decode(),
        "tail": base64.b64encode(view.tail).decode(),
        "walk": walk,
    }
    done = node(str(READER), stdin=json.dumps(state))
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def assert_told(said: dict[str, Any], state: ReplayedState) -> None:
    """Compare what the browser would show with the replayed state."""
    layout = state.layout
    tables: dict[int, list[int]] = {
        number: [block for table in sequence.tables for block in table.block_ids]
        for number, sequence in state.sequences.items()
    }
    told = {int(k): v for k, v in said["tables"].items() if v}
    assert {k: sorted(v) for k, v in told.items()} == {k: sorted(v) for k, v in tables.items() if v}
    for place in range(layout.num_blocks):
        block, shown = state.block(place), said["places"][place]
        assert shown["owners"] == sorted(block.owners), place
        assert shown["references"] == min(7, block.references), place
        assert shown["findable"] == (block.content_hash is not None), place
        assert shown["onHost"] == (block.slot is not None), place
        if block.references or block.content_hash:
            assert shown["fill"] == block.fill, place
        name = None if block.content_hash is None else block.content_hash[:8]
        assert shown["name"] == name, place
        if block.owners:
            assert shown["owner"] in block.owners
            start = block.position * layout.block_size
            owned = [state.tokens[o][start : start + block.fill] for o in block.owners]
            assert shown["tokens"] in owned, place
    for slot in range(layout.num_slots):
        shown = said["places"][layout.num_blocks + slot]
        assert shown["references"] == min(7, state.slot_holds[slot])
        assert shown["findable"] == (state.slot_contents[slot] is not None)
        keepers = [i for i, kept in state.swapped.items() if slot in kept.slots]
        if keepers:
            assert shown["owner"] in keepers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("host_blocks", [0, 16])
def test_every_step_is_what_the_trace_replays(
    make_engine: Callable[..., wb.Engine], node: Any, seed: int, host_blocks: int
) -> None:
    source = random.Random(seed)
    preemption = "swap" if host_blocks and seed % 2 else "recompute"
    engine = make_engine(num_blocks=28, host_blocks=host_blocks, preemption=preemption)
    drive(engine, source, source.choice([0, 12]))  # what it holds before it is watched
    with Trace.record(engine) as trace:
        drive(engine, source, 70)
        engine.run(300)
    kinds = {type(event) for event in trace.events}
    assert {events.BlockCopied, events.BlockEvicted} <= kinds
    view = KVCacheView(trace)
    walk = [source.choice(trace.steps) for _ in range(25)] + trace.steps
    for said in read(node, view, walk):
        assert_told(said, trace.at(said["step"]))


def test_blocks_that_change_places_content_that_is_left_and_steps_that_are_missing(
    node: Any,
) -> None:
    layout = CacheLayout(4, (GroupLayout(0, 3),), 1)
    trace = Trace({**layout.to_header(), "num_blocks": 3})
    step = 0

    def tell(kind: type[events.Event], *values: Any) -> None:
        trace(kind(step, *values))

    def done(computed: int) -> None:
        tell(events.StepDone, (), {}, 0, (computed,))

    tell(events.RequestAdded, "r", 0, 8, 4, tuple(range(8)))
    step = 1
    tell(events.StepPlanned, ((0, 0, 8),), 0, 1)
    for place in (0, 1):
        tell(events.BlockAllocated, place, 0, place)
    tell(events.SequenceAdmitted, 0, 0)
    done(8)
    step = 4  # two were planned and never committed; both blocks are taken again, the other way
    for place in (1, 0):
        tell(events.BlockReleased, place, 0, 0)
        tell(events.BlockFreed, place, False)
    for index, place in enumerate((1, 0)):
        tell(events.BlockAllocated, place, 0, index)
    tell(events.StepPlanned, ((0, 0, 8),), 0, 1)
    done(8)
    tell(events.BlockCached, 1, "ab" * 16)
    step = 5  # the content of block 1 is left behind, the host gives it to block 2
    tell(events.BlockReleased, 0, 0, 0)
    tell(events.BlockFreed, 0, False)
    tell(events.BlockReleased, 1, 0, 0)
    tell(events.BlockFreed, 1, True)
    tell(events.BlockAllocated, 2, 0, 0)
    tell(events.BlockRestored, 0, 2, 0)
    tell(events.StepPlanned, ((0, 4, 1),), 0, 1)
    done(4)
    step = 6
    tell(events.BlocksMoved, "restore", 1)
    tell(events.StepPlanned, ((0, 4, 1),), 0, 1)
    done(4)
    view = KVCacheView(trace)
    assert (view.first_step, view.last_step) == (0, 6)
    said = {entry["step"]: entry for entry in read(node, view, [1, 2, 3, 4, 5, 6, 3, 4])}
    assert [said[n]["tables"]["0"] for n in (1, 3, 4, 5)] == [[0, 1], [0, 1], [1, 0], [2]]
    assert [said[n]["places"][1]["tokens"] for n in (3, 4)] == [[4, 5, 6, 7], [0, 1, 2, 3]]
    left = said[5]["places"][1]
    assert (left["owner"], left["owners"], left["findable"]) == (0, [], True)
    assert left["words"]["left by"] == "r (sequence 0), its block 0"
    assert [said[n]["places"][3]["references"] for n in (4, 5, 6)] == [0, 1, 0]


@pytest.mark.parametrize("family", ["mistral", "qwen2-windows"])
def test_windows_and_several_groups(
    make_engine: Callable[..., wb.Engine], node: Any, family: str
) -> None:
    source = random.Random(2)
    engine = make_engine(family, num_blocks=80)
    with Trace.record(engine) as trace:
        drive(engine, source, 60)
    view = KVCacheView(trace)
    counts = [group["count"] for group in view.about["groups"]]
    assert sum(counts) == view.about["num_blocks"]
    assert len(counts) == (2 if family == "qwen2-windows" else 1)
    assert "a window of 8 tokens" in view.about["groups"][-1]["title"]
    for said in read(node, view, trace.steps[::-1]):
        assert_told(said, trace.at(said["step"]))


def test_a_log_taken_in_bits_is_the_log_taken_at_once(
    make_engine: Callable[..., wb.Engine], node: Any
) -> None:
    source = random.Random(5)
    engine = make_engine(num_blocks=24)
    view = KVCacheView(engine)
    packed_at_once = 0
    for _ in range(12):
        drive(engine, source, 5)
        view.refresh()
        packed_at_once += view.tail == KVCacheView(view.trace).tail
    assert packed_at_once < 12, "the log was packed anew each time"
    again = KVCacheView(view.trace)
    walk = [*view.trace.steps, *view.trace.steps[::-3]]
    assert read(node, view, walk) == read(node, again, walk)


def test_marks_say_what_happened_in_a_step_and_lookups_why(
    make_engine: Callable[..., wb.Engine], node: Any
) -> None:
    engine = make_engine(num_blocks=12, block_size=4, max_sequences=1)
    params = wb.SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    with Trace.record(engine) as trace:
        engine.generate([SHARED[:17], [*SHARED[:14], 3, 3], SHARED[:17]], params)
        engine.generate([[9] * 44, SHARED[:17]], params)
    view = KVCacheView(trace)
    said = {entry["step"]: entry for entry in read(node, view, trace.steps)}
    for kind, what in (
        (events.BlockAllocated, "new"),
        (events.BlockShared, "hit"),
        (events.BlockCopied, "copied"),
        (events.BlockEvicted, "evicted"),
    ):
        told = {(e.step, e.block_id) for e in trace.of(kind)}
        bit = 1 << MARKS.index(what)
        shown = {
            (s, place)
            for s, entry in said.items()
            for place, bits, _ in entry["marks"]
            if bits & bit
        }
        assert shown == told
        assert told, f"no block was {what}"
    copy = trace.of(events.BlockCopied)[0]
    words = said[copy.step]["places"][copy.block_id]["words"][f"step {copy.step}"]
    assert words == f"copied from block {copy.source} (copy-on-write)"
    table = view.lookups()
    assert list(table["found"]) == [0, 14, 16, 0, 0]
    assert table["reason"][0] == "no such prefix"
    assert "partial: 2 of 4 tokens" in table["reason"][1]
    assert table["reason"][4].startswith("block 0 was evicted at step")
    assert [entry["lookups"] for entry in said.values()] == sorted(
        sum(row <= step for row in table["step"]) for step in said
    )


def test_prompts_are_text_in_the_log_and_in_words(
    make_engine: Callable[..., wb.Engine], node: Any, tmp_path: Path
) -> None:
    engine = make_engine(block_size=8)
    prompt = "<script>alert(1)</script>"
    with Trace.record(engine) as trace:
        engine.generate([prompt], wb.SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    for kept in (trace, Trace.load(trace.save(tmp_path / "run.trace"))):
        [said, _] = read(node, KVCacheView(kept), [1, 2])
        text = "".join(place["words"].get("tokens", "") for place in said["places"])
        assert text.startswith(prompt[:-1])
    with Trace.record(engine) as trace:  # bytes that make up one character are in several tokens
        engine.generate(["日本é"], wb.SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    assert len(engine.tokenizer.encode("日本é")) > 3
    [said] = read(node, KVCacheView(trace), [trace.steps[0]])
    said_of = [place["words"].get("tokens", "") for place in said["places"] if place["references"]]
    assert said_of[0].startswith("日本"), said_of
    trace.tokenizer = None
    [said] = read(node, KVCacheView(trace), [trace.steps[0]])
    texts = [place["words"]["tokens"] for place in said["places"] if "tokens" in place["words"]]
    assert texts[0].startswith("<")
    assert "日" not in "".join(texts)


def test_a_cell_holds_what_fits_and_python_reads_it_back() -> None:
    block = BlockState(0, 3, (5, 6), 9, 300, "ff", 2)
    cell = block_cell(block, 77, 512)
    [owner], [fill], [references], [findable], [on_host] = taken_apart(
        np.array([cell], np.uint32), 512
    )
    assert (owner, references, findable, on_host) == (77, 7, True, True)
    assert fill == pytest.approx(300 / 512, abs=1 / 255)
    assert owner_of(cell) == 77
    assert owner_of(block_cell(block, None, 512)) is None


def test_what_it_says_of_itself(make_engine: Callable[..., wb.Engine]) -> None:
    engine = make_engine(num_blocks=20, host_blocks=4)
    with Trace.record(engine) as trace:
        engine.generate([SHARED[:10]], wb.SamplingParams(max_tokens=6, temperature=0))
    view = KVCacheView(trace)
    assert view.step == view.usage()["used"].idxmax()
    assert f"step {view.step} of 6: 4 of 20 blocks used (0 shared)" in view.summary()
    assert view.summary().endswith("host 0 of 4 slots")
    assert view.to_png().startswith(b"\x89PNG")
    usage = view.usage()
    for step in trace.steps:
        state = trace.at(step)
        assert usage.loc[step, "used"] == state.num_used
        assert usage.loc[step, "tokens_held"] == state.num_tokens_held


def test_a_view_of_nothing_says_so() -> None:
    view = KVCacheView()
    assert "nothing has been recorded" in repr(view)
    assert view.to_png()
    assert view.usage().empty
    assert view.lookups().empty


def test_a_trace_that_does_not_know_its_cache_is_refused() -> None:
    trace = Trace()
    trace(events.StepDone(1, (), {}, 0))
    with pytest.raises(TraceError, match="header"):
        KVCacheView(trace)


def test_what_is_left_is_scrubbed_exactly(monkeypatch: pytest.MonkeyPatch, node: Any) -> None:
    monkeypatch.setattr(recording, "MOST_EVENTS", 600)
    engine, source = long_run_engine(), random.Random(4)
    view = KVCacheView(engine)
    work(engine, source, 60)
    view.refresh()
    view.step = 20  # somebody looks back
    for _ in range(30):
        work(engine, source, 10)
        view.refresh()
    assert view.trace.num_shortened > 1
    assert view.step == view.first_step > 20, "the step looked at is gone: the nearest is shown"
    assert isinstance(view.trace.events[0], events.StateSeen)
    steps = [event.step for event in view.trace.of(events.StepDone)]
    for said in read(node, view, [*steps, *reversed(steps), source.choice(steps)]):
        assert_told(said, view.trace.at(said["step"]))
    view.step = steps[3]
    assert f"step {steps[3]} of" in view.summary()
    view.close()
