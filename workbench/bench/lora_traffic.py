"""Adapters that come and go under traffic: `workbench bench lora --cases zipf,load`, on any device.

`zipf`: requests over more adapters than fit on the device, adapter i with weight 1 / (i + 1),
beside the same requests without any, in turns: as many there at once as can run, so that one that
waits for its adapter leaves a place empty (`zipf queue`: twice as many). `load`: what a hot load
does to requests that run: the folder is read by a thread, as a server does, then the adapter goes
to the device with its first request. Graphs that another adapter has needed before are there: what
is captured and compiled meanwhile is counted.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.bench.lora_adapters import RandomAdapters, zipf
from workbench.bench.measure import Row
from workbench.engine import Engine
from workbench.lora import Adapter
from workbench.sampling_params import SamplingParams

_STEPS = 40  # of each part of a hot load
_WARM_UPS = 2  # rounds in which graphs are captured


@dataclass(frozen=True, slots=True)
class Traffic:
    """How much: adapters known and fitting at once; requests of some tokens in and out, of which so
    many are there at once (one that ends is followed by the next); how many run while an adapter is
    loaded. max_sequences: how many may run."""

    registered: int
    fitting: int
    requests: int
    at_once: int
    prompt: int
    output: int
    running: int
    max_sequences: int = 256


ON_GPU = Traffic(
    registered=256, fitting=64, requests=768, at_once=256, prompt=128, output=64, running=32
)
ZIPF_ON_GPU = {"zipf": ON_GPU, "zipf queue": replace(ON_GPU, requests=1536, at_once=512)}
ON_CPU = Traffic(registered=32, fitting=8, requests=32, at_once=12, prompt=16, output=12, running=4)


def zipf_rows(
    engine: Engine,
    adapters: RandomAdapters,
    rank: int,
    traffic: Traffic,
    repeats: int,
    where: dict[str, Any],
    case: str = "zipf",
) -> list[Row]:
    """Print and return the rates of Zipf traffic and of the same without adapters."""
    for number in range(traffic.registered):
        engine.loras.load(f"z{number}", adapters.make(rank))
    rates: dict[str, list[float]] = {"base": [], "zipf": []}
    counts = _Counts(engine)
    for repeat in range(repeats + _WARM_UPS):
        drawn = zipf(traffic.requests, traffic.registered, seed=repeat)
        uses: dict[str, list[str | None]] = {
            "base": [None] * len(drawn),
            "zipf": [f"z{i}" for i in drawn],
        }
        if repeat == _WARM_UPS:
            counts = _Counts(engine)
        for which, lora in uses.items():
            rate = _rate(engine, traffic, lora)
            if repeat >= _WARM_UPS:
                rates[which].append(rate)
    base, mixed = (statistics.median(found) for found in rates.values())
    print(
        f"{case:<12} {base:>8.0f} -> {mixed:>8.0f} tok/s ({mixed / base - 1:+.1%}); "
        f"{traffic.registered} adapters, {traffic.fitting} fit; {counts.since(engine)}",
        flush=True,
    )
    for number in range(traffic.registered):
        engine.loras.unload(f"z{number}")
    return [row(f"{case}: {which}", found, where) for which, found in rates.items()]


class _Counts:
    """How the manager's counters stand, to say what has come to them since."""

    def __init__(self, engine: Engine) -> None:
        infos, totals = engine.loras.list(), engine.loras.slots.mover.totals
        self.hits, self.misses = sum(i.hits for i in infos), sum(i.misses for i in infos)
        self.loads, self.num_bytes = totals.count, totals.num_bytes
        self.seconds, self.held_up = totals.seconds, totals.held_up
        self.captures = engine.runner.preparations

    def since(self, engine: Engine) -> str:
        now = _Counts(engine)
        hits, asked = now.hits - self.hits, now.hits + now.misses - self.hits - self.misses
        seconds, held_up = now.seconds - self.seconds, now.held_up - self.held_up
        loads = now.loads - self.loads
        return (
            f"hits {hits / max(asked, 1):.0%} of {asked}; {loads} loads of "
            f"{(now.num_bytes - self.num_bytes) / 1e9:.2f} GB, "
            f"{1e3 * seconds / max(loads, 1):.1f} ms each, "
            f"{1 - min(held_up / seconds, 1) if seconds else 0:.0%} of it beside steps; "
            f"{now.captures - self.captures} preparations"
        )


def _rate(engine: Engine, traffic: Traffic, lora: list[str | None]) -> float:
    params = SamplingParams(max_tokens=traffic.output, temperature=0, ignore_eos=True)
    begin, come, there = time.perf_counter(), 0, 0
    while come < len(lora) or engine.has_work:
        while come < len(lora) and there < traffic.at_once:
            engine.add(_prompt(engine, traffic, come), params, lora=lora[come])
            come, there = come + 1, there + 1
        finished = [s.request.request_id for s in engine.advance().finished]
        engine.discard(finished)
        there -= len(finished)
    engine.overlap.drop()
    return len(lora) * traffic.output / (time.perf_counter() - begin)


def _prompt(engine: Engine, traffic: Traffic, number: int) -> list[int]:
    return [1 + number % (engine.model.config.vocab_size - 1)] * traffic.prompt


class _Steps:
    """Steps of an engine, each with what it took."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def take(self, more: Any) -> list[float]:
        """Return the seconds of each step while `more(number)` says so."""
        walls: list[float] = []
        while more(len(walls)):
            begin = time.perf_counter()
            self.engine.advance()
            walls.append(time.perf_counter() - begin)
        return walls


def load_rows(
    engine: Engine, adapters: RandomAdapters, rank: int, traffic: Traffic, where: dict[str, Any]
) -> list[Row]:
    """Print and return what a hot load takes, and the longest steps of those that run meanwhile."""
    steps, params = _Steps(engine), SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    most = min(1 << 12, engine.model.config.context - traffic.prompt)
    long = SamplingParams(max_tokens=most, temperature=0, ignore_eos=True)
    prompt = _prompt(engine, traffic, 7)
    with tempfile.TemporaryDirectory() as made:
        folders = [adapters.make(rank, i).to_peft(Path(made, f"hot{i}")) for i in range(2)]
        running = [engine.add(_prompt(engine, traffic, i), long) for i in range(traffic.running)]
        steps.take(lambda number: number < _STEPS // 2)
        captures = engine.runner.preparations
        engine.loras.load("hot0", folders[0])
        first = _until_done(steps, engine.add(prompt, params, lora="hot0"))
        captured = engine.runner.preparations - captures
        for _ in range(2):  # a mixed size is captured when it comes a third time
            _until_done(steps, engine.add(prompt, params, lora="hot0"))
        usual = statistics.median(steps.take(lambda number: number < _STEPS))
        read: list[Adapter] = []
        thread = threading.Thread(target=lambda: read.append(engine.loras.read(folders[1])))
        begin = time.perf_counter()
        thread.start()
        beside = steps.take(lambda _: thread.is_alive())
        reading = time.perf_counter() - begin
        thread.join()
        begin = time.perf_counter()
        info = engine.loras.load("hot1", read[0])
        known = time.perf_counter() - begin
        captures = engine.runner.preparations
        moving = _until_done(steps, engine.add(prompt, params, lora="hot1"))
        captures = engine.runner.preparations - captures
        engine.discard(running)
    took = engine.loras.info("hot1").seconds
    print(
        f"hot load     {info.num_bytes / 1e6:.1f} MB read, checked and packed in "
        f"{1e3 * took['read']:.0f} ms (thread {1e3 * reading:.0f}), known in {1e3 * known:.1f}, "
        f"to the device in {1e3 * took['to device']:.1f}; steps {1e3 * usual:.1f} ms, the longest "
        f"while reading {1e3 * max(beside, default=0):.1f}, from request to end "
        f"{1e3 * max(moving):.1f} ({captures} preparations); the first adapter's "
        f"{1e3 * max(first):.1f} ({captured} preparations)",
        flush=True,
    )
    for name in ("hot0", "hot1"):
        engine.loras.unload(name)
    return [
        row("load: seconds", [took["read"] + known + took["to device"]], where),
        row("load: seconds of the longest step", [max(*beside, *moving)], where),
        row("load: seconds of a usual step", [usual], where),
    ]


def _until_done(steps: _Steps, request: str) -> list[float]:
    engine = steps.engine
    walls = steps.take(lambda _: not engine.output(request).finished)
    if engine.runner.device.type == "cuda":
        torch.cuda.synchronize()
    engine.discard([request])
    return walls


def row(case: str, values: list[float], where: dict[str, Any], unit: str = "") -> Row:
    """Return a figure's row; its unit follows from the case, unless it is given."""
    ordered = sorted(values)
    unit = unit or ("seconds" if "seconds" in case else "tokens/s")
    median = statistics.median(ordered)
    ends = ordered[0], ordered[-1]
    return Row("lora", case, "workbench", unit, median, *ends, len(ordered), 0.0, where=where)
