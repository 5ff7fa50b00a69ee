"""What becomes of Zipf traffic over adapters: `workbench bench lora --cases schedule`, by counting.

The real engine, scheduler, manager and rank rows run, at the size of the GPU's traffic; the model's
passes are free (see `workbench.bench.idle`), and time is a clock that each step moves on by
what its batch takes on a GPU. Adapters arrive by that clock too. So no count depends on the
machine: steps, rows a step, loads, waits. `Costs` are an H200's with llama-8b, from `bench gpu` and
`bench lora`; the rate that follows is a model's, to be held against a GPU's.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workbench import events as ev
from workbench.batch import StepPlan
from workbench.bench.idle import ConstantSampler, NoRunner
from workbench.bench.lora_adapters import RandomAdapters, zipf
from workbench.bench.lora_traffic import Traffic, row
from workbench.bench.measure import Row
from workbench.cache import KVCache
from workbench.config import ModelConfig, SchedulerConfig
from workbench.engine import Engine
from workbench.lora import LoRAManager
from workbench.lora.moves import Move, MoveTotals
from workbench.lora.names import parse_uses
from workbench.lora.pool import Place, RankPool, Resident
from workbench.models import LlamaForCausalLM
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler

_RANK = 2


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a step: of any, of each row, of each token of a prompt, of each adapter that its
    rows go through. load: of an adapter over the bus, from when the pass that runs has ended."""

    step: float = 4.25e-3
    row: float = 19.7e-6
    prompt: float = 24e-6
    adapter: float = 40e-6
    load: float = 3.9e-3


class _Arrival(Future[tuple[Resident, float]]):
    """An adapter that is there when the clock says so; who waits for it moves the clock on."""

    def __init__(self, clock: Clock, pool: RankPool, place: Place, due: float) -> None:
        super().__init__()
        self.clock, self.pool, self.place, self.due = clock, pool, place, due

    def done(self) -> bool:
        """Whether its time has come."""
        return self.clock.now >= self.due

    def result(self, timeout: float | None = None) -> tuple[Resident, float]:
        """Write it, at its time."""
        self.clock.now = max(self.clock.now, self.due)
        return self.pool.write(self.place), self.clock.costs.load


@dataclass(slots=True)
class Clock:
    """Seconds since the beginning, and those of the latest step."""

    costs: Costs
    now: float = 0.0
    last: float = 0.0

    def step(self, batch: Batch) -> None:
        """Move on by what a step takes."""
        costs = self.costs
        self.last = costs.step + batch.decodes * costs.row + batch.prompt * costs.prompt
        self.last += batch.adapters * costs.adapter
        self.now += self.last


class ClockedMover:
    """Stands where the `Mover` is: one load after the other, by the clock."""

    def __init__(self, pool: RankPool, clock: Clock) -> None:
        self.pool, self.clock, self.totals = pool, clock, MoveTotals()
        self._free = 0.0

    def start(self, place: Place, source: str, cause: str) -> Move:
        """Begin to write an adapter to its place."""
        clock = self.clock
        begin = max(self._free, clock.now + clock.last)
        self._free = begin + clock.costs.load
        return Move(place, source, cause, _Arrival(clock, self.pool, place, self._free))

    def close(self) -> None:
        """Nothing to end."""


class Batch(NamedTuple):
    """What decides how long a step takes: decodes, tokens of prompts, adapters."""

    decodes: int
    prompt: int
    adapters: int


@dataclass
class Counts:
    """What happened. rows: of all steps; idle: those that stayed free while requests waited.
    in_vain: loads of adapters that left before anybody started with them. waits: steps from coming
    to the first start, by request. seconds: by the model."""

    max_sequences: int
    steps: int = 0
    rows: int = 0
    idle: int = 0
    loads: int = 0
    evicted: int = 0
    in_vain: int = 0
    hits: int = 0
    misses: int = 0
    seconds: float = 0.0
    waits: list[int] = field(default_factory=list)
    _names: dict[int, set[str]] = field(default_factory=dict)
    _came: dict[int, int] = field(default_factory=dict)
    _unused: set[str] = field(default_factory=set)

    def step(self, plan: StepPlan, num_waiting: int) -> Batch:
        """Count a step, and return its batch."""
        self.steps, rows = self.steps + 1, len(plan.sequences)
        self.rows += rows
        self.idle += min(num_waiting, self.max_sequences - rows)
        names = {use.name for s in plan.sequences for use in s.request.lora}
        return Batch(plan.num_decodes, plan.num_tokens - plan.num_decodes, len(names))

    def take(self, event: ev.Event) -> None:
        """Count an event."""
        match event:
            case ev.RequestAdded(sequence_id=number, lora=lora):
                self._came[number] = self.steps
                self._names[number] = set(parse_uses(lora)) if lora else set()
            case ev.SequenceAdmitted(sequence_id=number):
                self._unused -= self._names[number]
                self.waits.append(self.steps - self._came.pop(number))
            case ev.AdapterMoved(name=name, target="device"):
                self.loads += 1
                self._unused.add(name)
            case ev.AdapterMoved(name=name, source="device"):
                self.evicted += 1
                self.in_vain += name in self._unused
                self._unused.discard(name)

    def __str__(self) -> str:
        """All of it in a line."""
        waits, asked = sorted(self.waits), self.hits + self.misses
        return (
            f"{self.steps} steps of {self.rows / self.steps:.0f} rows, "
            f"{self.idle / self.steps:.0f} free while others wait; "
            f"hits {self.hits / max(asked, 1):.0%} of {asked}, {self.loads} loads "
            f"({self.in_vain} in vain), {self.evicted} evicted; waits of "
            f"{statistics.fmean(waits):.0f} steps, the longest {waits[-1]}; {self.seconds:.2f} s"
        )


def make_engine(traffic: Traffic, num_rows: int) -> Engine:
    """Return an engine whose passes are free, with so many rank rows."""
    length = traffic.prompt + traffic.output + 1
    config = ModelConfig("LlamaForCausalLM", 128, 4, 4, 1, 1, 1, 4, context=length)
    model = LlamaForCausalLM(config).requires_grad_(False)
    cache = KVCache.for_model(model, traffic.max_sequences * (length // 16 + 2), 16)
    seats = traffic.max_sequences
    budgets = SchedulerConfig(max_batch_tokens=8192, max_sequences=seats, prefix_reuse=False)
    scheduler = Scheduler(cache, budgets)
    loras = LoRAManager(model, num_rows=num_rows)
    runner: Any = NoRunner(model, cache)
    sampler: Any = ConstantSampler()
    return Engine(model, cache, scheduler, runner, sampler, loras=loras)


def simulate(traffic: Traffic, lora: Sequence[str | None], costs: Costs | None = None) -> Counts:
    """Return what happens to requests in an engine of `make_engine`, as many there at once as
    `traffic` says."""
    engine, clock = make_engine(traffic, traffic.fitting * _RANK), Clock(costs or Costs())
    adapters, slots = RandomAdapters(engine.model), engine.loras.slots
    for number in range(traffic.registered):
        engine.loras.load(f"z{number}", adapters.make(_RANK, number))
    mover: Any = ClockedMover(slots.pool, clock)
    slots.mover, slots.beside = mover, True
    counts = Counts(traffic.max_sequences)
    engine.bus.subscribe(counts.take)
    params = SamplingParams(max_tokens=traffic.output, temperature=0, ignore_eos=True)
    come = there = 0
    while come < len(lora) or engine.has_work:
        while come < len(lora) and there < traffic.at_once:
            engine.add([1] * traffic.prompt, params, lora=lora[come])
            come, there = come + 1, there + 1
        record = engine.step()
        clock.step(counts.step(record.plan, len(engine.scheduler.waiting)))
        engine.discard([s.request.request_id for s in record.finished])
        there -= len(record.finished)
    infos, counts.seconds = engine.loras.list(), clock.now
    counts.hits, counts.misses = sum(i.hits for i in infos), sum(i.misses for i in infos)
    engine.close()
    return counts


def schedule_rows(cases: Mapping[str, Traffic], repeats: int, where: dict[str, Any]) -> list[Row]:
    """Print and return what traffic becomes with adapters and without."""
    rows = []
    for case, traffic in cases.items():
        found: dict[str, list[Counts]] = {"base": [], "zipf": []}
        for seed in range(repeats):
            drawn = zipf(traffic.requests, traffic.registered, seed=seed)
            for which, lora in (("base", [None] * len(drawn)), ("zipf", [f"z{i}" for i in drawn])):
                found[which].append(simulate(traffic, lora))
        print(
            f"{case}: {traffic.requests} requests, {traffic.at_once} at once; "
            f"{traffic.registered} adapters, {traffic.fitting} fit"
        )
        for which, counts in found.items():
            for one in counts:
                print(f"  {which}  {one}", flush=True)
            steps = [float(one.steps) for one in counts]
            rows.append(row(f"schedule, {case}: {which}", steps, where, "steps"))
        base, mixed = (statistics.median(c.seconds for c in each) for each in found.values())
        print(f"  by the model {base / mixed - 1:+.1%}", flush=True)
    return rows
