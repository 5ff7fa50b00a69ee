"""Who gets room for their adapters, and when: nobody starves, nobody overtakes within a turn, and
requests without adapters never wait for any. Passes are free, and loads come by a clock."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import events as ev
from workbench.bench.lora_adapters import RandomAdapters
from workbench.bench.lora_schedule import Clock, ClockedMover, Costs, make_engine
from workbench.bench.lora_traffic import Traffic
from workbench.engine import Engine
from workbench.sampling_params import SamplingParams

LIMIT = 32  # of `workbench.lora.turns`
PROMPT, LONGEST, LOAD = [1, 2, 3], 6, 3  # a load takes this many steps and the one that runs


@dataclass
class Bench:
    """An engine with adapters a0, a1, … of these ranks, and what its bus says of each request."""

    ranks: list[int]
    num_rows: int
    seats: int = 64
    came: dict[int, int] = field(default_factory=dict)
    started: dict[int, int] = field(default_factory=dict)
    lora: dict[int, str] = field(default_factory=dict)
    moved: list[ev.AdapterMoved] = field(default_factory=list)

    def __post_init__(self) -> None:
        traffic = Traffic(0, 1, 0, 0, len(PROMPT), LONGEST, 0, max_sequences=self.seats)
        self.engine: Engine = make_engine(traffic, self.num_rows)
        adapters, loras = RandomAdapters(self.engine.model), self.engine.loras
        for number, rank in enumerate(self.ranks):
            loras.load(f"a{number}", adapters.make(rank, number))
        # A step takes a second.
        self.clock = Clock(Costs(step=1.0, row=0, prompt=0, adapter=0, load=float(LOAD)))
        mover: Any = ClockedMover(loras.slots.pool, self.clock)
        loras.slots.mover, loras.slots.beside = mover, True
        self.engine.bus.subscribe(self.take)

    def take(self, event: ev.Event) -> None:
        match event:
            case ev.RequestAdded(sequence_id=number):
                self.came[number] = self.engine.scheduler.step
            case ev.SequenceAdmitted(step=step, sequence_id=number):
                self.started[number] = step
            case ev.AdapterMoved():
                self.moved.append(event)

    def add(self, lora: str | None, tokens: int = LONGEST) -> int:
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        self.engine.add(PROMPT, params, lora=lora)
        number = max(self.came)
        self.lora[number] = lora or ""
        return number

    def step(self) -> None:
        record = self.engine.step()
        self.clock.now += 1.0
        self.clock.last = 1.0
        self.engine.discard([s.request.request_id for s in record.finished])

    def tiers(self) -> str:
        """The adapters on the device."""
        return " ".join(i.name for i in self.engine.loras.list() if i.tier == "device")


def test_one_adapter_runs_out_for_the_first_and_others_go_on() -> None:
    """Three fill the device with traffic that never ends; the one that fewest run through is
    closed, and its requests come back when the first has had its turn."""
    bench = Bench([1] * 4, 3)
    for _ in range(5 * LOAD):
        for name in ("a0", "a0", "a1", "a2", "a2"):
            bench.add(name)
        bench.step()
    waiting, closed_at = bench.add("a3"), 0
    late: list[int] = []
    for _ in range(3 * LIMIT):
        for name in ("a0", "a0", "a1", "a2", "a2"):
            number = bench.add(name)
            if bench.engine.loras.gate.turns.closed:
                closed_at = closed_at or bench.engine.scheduler.step
                late += [number] if name == "a1" else []
        bench.step()
        assert bench.engine.loras.gate.turns.closed <= {"a1"}
        if waiting in bench.started:
            break
    wait = bench.started[waiting] - bench.came[waiting]
    assert LIMIT < wait <= LIMIT + LONGEST + LOAD + 4
    assert closed_at
    others = [n for n, name in bench.lora.items() if name in ("a0", "a2") and n > waiting]
    assert {bench.started[n] - bench.came[n] for n in others} == {1}, "they went on at once"
    for _ in range(4 * LIMIT):
        bench.step()
    assert all(n in bench.started for n in late)
    bench.engine.run()


def test_idle_ones_that_others_wait_for_leave_last() -> None:
    """There are no seats: what is brought ahead of its turn takes the room that nobody wants."""
    bench = Bench([1] * 4, 3, seats=1)
    for name in ("a0", "a1", "a2"):
        bench.add(name, 1)
        for _ in range(LOAD + 3):
            bench.step()
    assert bench.tiers() == "a0 a1 a2"
    for name in (None, "a0", "a2", "a3"):
        bench.add(name)
    for _ in range(LOAD + 3):
        bench.step()
    assert bench.tiers() == "a0 a2 a3", "it is there before its request can start"
    bench.engine.run()
    assert [e.name for e in bench.moved if e.target == "host"] == ["a1"]


def test_several_are_brought_at_once_and_in_order() -> None:
    bench = Bench([1] * 6, 4)
    bench.add(None)
    bench.step()
    numbers = [bench.add(f"a{i}") for i in (3, 1, 4, 0, 2)]
    bench.step()
    moving = [e.name for e in bench.engine.loras.store.entries.values() if e.moving is not None]
    assert moving == ["a0", "a1", "a3", "a4"]
    bench.engine.run()
    assert [e.name for e in bench.moved if e.target == "device"] == ["a3", "a1", "a4", "a0", "a2"]
    *first, last = (bench.started[number] for number in numbers)
    assert max(first) < last


def test_a_large_one_gets_rows_that_small_ones_would_take() -> None:
    """Rows are kept for it once it is first: else one or the other always takes a free one."""
    bench = Bench([1] * 8 + [4], 4)
    for step in range(4):
        bench.add(f"a{step}", 1 + step)
    bench.step()
    waiting = bench.add("a8")
    for step in range(4 * LIMIT):
        bench.add(f"a{step % 8}", 2)
        bench.step()
        if waiting in bench.started:
            break
    assert LIMIT <= bench.started[waiting] - bench.came[waiting] <= LIMIT + LONGEST + LOAD + 4
    bench.engine.run()


def test_one_that_is_given_up_opens_what_was_closed_for_it() -> None:
    bench = Bench([1] * 2, 1)
    for _ in range(2):
        bench.add("a0")
        bench.step()
    waiting = bench.add("a1")
    for _ in range(2 * LIMIT):
        bench.add("a0")
        bench.step()
        if bench.engine.loras.gate.turns.closed:
            break
    assert bench.engine.loras.gate.turns.closed == {"a0"}
    held = bench.add("a0")
    bench.step()
    assert held not in bench.started
    request = next(
        s.request.request_id for s in bench.engine.scheduler.waiting if s.sequence_id == waiting
    )
    bench.engine.abort(request)
    bench.step()
    assert held in bench.started
    bench.engine.run()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_nobody_starves_and_nobody_overtakes(data: st.DataObject) -> None:
    """Whatever ranks, requests, combinations and traffic that never ends through two adapters."""
    ranks = data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=3, max_size=6), "ranks")
    num_rows = data.draw(st.integers(max(ranks) + sorted(ranks)[-2], 9), "rows")
    names = [f"a{i}" for i in range(len(ranks))]
    lora = st.sampled_from([None, *names, f"{names[0]}+{names[-1]}", f"{names[1]}:0.5+{names[2]}"])
    come = st.lists(st.tuples(lora, st.integers(1, LONGEST)), max_size=3)
    drawn = data.draw(st.lists(come, min_size=1, max_size=12), "requests")
    source = random.Random(data.draw(st.integers(0, 99), "seed"))
    bench = Bench(ranks, num_rows)
    watched: list[int] = []
    for requests in drawn:
        watched += [bench.add(uses, tokens) for uses, tokens in requests]
        bench.add(source.choice(names[:2]), source.randint(1, LONGEST))
        bench.step()
    kinds = len({bench.lora[number] for number in watched}) + 2
    # Each that is before it may be first, run out, load and run.
    bound = 2 * kinds * (LIMIT + 2 * LONGEST + LOAD * len(ranks))
    for _ in range(bound):
        if all(number in bench.started for number in watched):
            break
        for name in names[:2]:
            bench.add(name, source.randint(1, LONGEST))
        bench.step()
    assert all(number in bench.started for number in watched), "somebody starves"
    bench.engine.run()
    by_uses: dict[str, list[int]] = {}
    for number, uses in bench.lora.items():
        by_uses.setdefault(uses, []).append(number)
    for uses, numbers in by_uses.items():
        starts = [bench.started[number] for number in sorted(numbers)]
        assert starts == sorted(starts), f"within {uses!r} somebody overtook"
    for number in by_uses.get("", []):
        assert bench.started[number] == bench.came[number] + 1, "one without adapters waited"
    pool = bench.engine.loras.slots.pool
    taken = sum(len(i.rows) for i in bench.engine.loras.list())
    assert taken == pool.num_rows - pool.num_free


@pytest.mark.parametrize("act", ["resume", "abort"])
def test_a_paused_one_is_closed_last(act: str) -> None:
    """It may never end: room is made of what runs."""
    bench = Bench([1] * 3, 2)
    paused = bench.add("a0")
    bench.add("a1")
    bench.add("a1")
    for _ in range(LOAD * 3):
        bench.step()
        if paused in bench.started:
            break
    request = next(iter(bench.engine.requests))
    bench.engine.pause(request)
    waiting = bench.add("a2")
    for _ in range(2 * LIMIT):
        for _ in range(2):
            bench.add("a1")
        bench.step()
        assert "a0" not in bench.engine.loras.gate.turns.closed
        if waiting in bench.started:
            break
    assert waiting in bench.started
    getattr(bench.engine, act)(request)
    bench.engine.run()
