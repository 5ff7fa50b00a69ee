"""With nobody listening, the engine builds no event; with somebody, it states the whole run."""

from __future__ import annotations

from typing import Any

import pytest
from drive import MakeEngine, greedy
from tiny import random_prompts

from workbench import events
from workbench.trace import Trace

KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, events.Event)
]


def eventful(engine: Any) -> None:
    """Share, copy, preempt, evict, pause, abort: a run in which nearly everything happens."""
    prompts = random_prompts(6, seed=90, longest=24)
    names = [engine.add(prompt, greedy(24)) for prompt in [*prompts, prompts[1]]]
    engine.run(6)
    engine.abort(names[0])
    engine.pause(names[1])
    engine.pause(names[2], release=True)
    engine.run(2)
    engine.resume(names[1])
    engine.resume(names[2])
    engine.run()


def test_without_subscribers_no_event_is_built(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(num_blocks=16, block_size=4, preemption="swap", host_blocks=30)

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"{type(self).__name__} was built")

    for kind in KINDS:
        monkeypatch.setattr(kind, "__init__", refuse)
    eventful(engine)


def test_the_guard_above_can_fail(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(num_blocks=16, block_size=4, preemption="swap", host_blocks=30)
    built = set()

    def note(self: Any, *args: Any, **kwargs: Any) -> None:
        built.add(type(self).__name__)

    for kind in KINDS:
        monkeypatch.setattr(kind, "__init__", note)
    engine.bus.subscribe(lambda event: None)
    eventful(engine)
    assert built >= {
        "RequestAdded",
        "SequenceAdmitted",
        "RequestFinished",
        "Preempted",
        "BlockAllocated",
        "BlockReleased",
        "BlockFreed",
        "BlockCached",
        "BlockEvicted",
        "BlockOffloaded",
        "BlockRestored",
        "SwappedIn",
        "SequencePaused",
        "SequenceResumed",
        "PrefixMiss",
        "StepPlanned",
        "StepDone",
    }


def test_the_events_rebuild_the_allocator(make_engine: MakeEngine) -> None:
    """A reader of the events alone knows every table and reference count at every step."""
    engine = make_engine(num_blocks=16, block_size=4, preemption="swap", host_blocks=30)
    tables: dict[int, dict[int, int]] = {}
    counts = [0] * 16
    copied: list[int] = []
    checked = 0

    def follow(event: events.Event) -> None:
        nonlocal checked
        match event:
            case events.BlockAllocated() | events.BlockShared():
                tables.setdefault(event.sequence_id, {})[event.index] = event.block_id
                counts[event.block_id] += 1
            case events.BlockCopied():  # the source stays in use until the step is committed
                tables[event.sequence_id][event.index] = event.block_id
                counts[event.block_id] += 1
                copied.append(event.source)
            case events.BlockReleased():
                counts[event.block_id] -= 1
                assert counts[event.block_id] == event.num_references
            case events.RequestFinished() | events.Preempted():
                tables.pop(event.sequence_id, None)
            case events.StepDone():
                real = engine.cache.blocks
                while copied:
                    counts[copied.pop()] -= 1
                assert counts == real.ref_counts
                assert event.num_free_blocks == real.num_free
                shown = {i: [t[k] for k in sorted(t)] for i, t in tables.items()}
                assert shown == {i: t.block_ids for i, t in real.tables.items()}
                checked += 1

    engine.bus.subscribe(follow)
    eventful(engine)
    assert checked > 20


def test_every_token_is_in_the_events(make_engine: MakeEngine) -> None:
    engine = make_engine(num_blocks=16, block_size=4, preemption="swap", host_blocks=30)
    with Trace.record(engine) as trace:
        eventful(engine)
    told: dict[int, list[int]] = {}
    for event in trace.of(events.StepDone):
        for sequence_id, token in event.tokens:
            told.setdefault(sequence_id, []).append(token)
    sequences = [s for record in engine.requests.values() for s in record.sequences]
    made = {s.sequence_id: s.output_token_ids for s in sequences}
    assert told == made
    planned = [event.step for event in trace.of(events.StepPlanned)]
    assert planned == [event.step for event in trace.of(events.StepDone)]
    reasons = {e.sequence_id: e.reason for e in trace.of(events.RequestFinished)}
    assert reasons == {s.sequence_id: s.finish_reason for s in sequences}
