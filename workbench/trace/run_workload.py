"""`run_workload`: timed requests into an engine as they arrive, in real or in virtual time.

Virtual time goes on by what each step takes and jumps over the gaps in which nothing is to be done,
so that an hour of trace takes as long as its work. Latencies count from the arrival.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

from workbench.cache.stats import CacheStats
from workbench.data.workload import TimedRequest, Workload
from workbench.describe import Described
from workbench.engine import Engine, StepRecord
from workbench.errors import InvalidValue, RequestError
from workbench.sampling_params import SamplingParams

Clock = Literal["virtual", "real"]


@dataclass(slots=True)
class Timing:
    """One request's times, in seconds from the start of the workload (None: not yet)."""

    request_id: str
    arrival: float
    num_prompt: int
    added: float
    first_token: float | None = None
    finished: float | None = None
    num_output: int = 0
    num_cached: int = 0
    finish_reason: str | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def tpot(self) -> float | None:
        """Mean seconds per output token after the first; None before it has two."""
        if self.first_token is None or self.finished is None or self.num_output < 2:
            return None
        return (self.finished - self.first_token) / (self.num_output - 1)


@dataclass(slots=True, repr=False)
class WorkloadRun(Described):
    """How a workload went. refused: (request, why) for what the engine could never have run.

    seconds: from the first arrival's clock zero to the last token; busy_seconds: of those, in
    steps. before and after: the cache's counters.
    """

    workload: Workload
    clock: str
    timings: list[Timing] = field(default_factory=list)
    refused: list[tuple[TimedRequest, str]] = field(default_factory=list)
    seconds: float = 0.0
    busy_seconds: float = 0.0
    num_steps: int = 0
    before: CacheStats | None = None
    after: CacheStats | None = None

    @property
    def hit_rate(self) -> float:
        """Prompt tokens found in the cache, of all that were looked for in this run."""
        if self.before is None or self.after is None:
            return 0.0
        hits = self.after.hit_tokens - self.before.hit_tokens
        missed = self.after.missed_tokens - self.before.missed_tokens
        return hits / (hits + missed) if hits + missed else 0.0

    def describe(self) -> dict[str, Any]:
        """Return the run in numbers; times in milliseconds, nearest-rank percentiles."""
        output = sum(timing.num_output for timing in self.timings)
        ttft = [t.ttft for t in self.timings if t.ttft is not None]
        tpot = [t.tpot for t in self.timings if t.tpot is not None]
        return {
            "workload": self.workload.name,
            "clock": self.clock,
            "requests": len(self.timings),
            "refused": len(self.refused),
            "steps": self.num_steps,
            "seconds": round(self.seconds, 3),
            "busy seconds": round(self.busy_seconds, 3),
            "output tokens/s": round(output / self.seconds, 1) if self.seconds else None,
            "TTFT ms (p50, p90, p99)": percentiles(ttft),
            "TPOT ms (p50, p90, p99)": percentiles(tpot),
            "prefix hit rate": f"{self.hit_rate:.1%}",
        }


def percentiles(seconds: Sequence[float]) -> str:
    """Return p50, p90 and p99 in milliseconds, by nearest rank; `-` of nothing."""
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    ranks = [ordered[ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99)]
    return ", ".join(f"{1e3 * value:.1f}" for value in ranks)


def run_workload(
    engine: Engine,
    workload: Workload,
    *,
    params: SamplingParams | None = None,
    clock: Clock = "virtual",
    step_seconds: Callable[[StepRecord], float] | None = None,
) -> WorkloadRun:
    """Run a workload to its end and return how it went; the engine keeps none of its requests.

    params: how to sample (None: greedily); each request's `max_tokens` is the workload's, and it
    goes on past an end token. step_seconds: what a step takes in virtual time (None: what it really
    took), for instance of another machine's cost model. A request that could never fit is noted in
    `refused`. Raises `InvalidValue` for another clock.
    """
    if clock not in ("virtual", "real"):
        raise InvalidValue("clock", clock, "no such clock", "Use 'virtual' or 'real'.")
    if clock == "real" and step_seconds is not None:
        fix = "Use clock='virtual'."
        raise InvalidValue("step_seconds", step_seconds, "cannot change real time", fix)
    engine.require_open()
    driver = _Driver(engine, workload, params or SamplingParams(temperature=0), clock, step_seconds)
    try:
        driver.run()
    finally:
        engine.discard(driver.timings)
    return driver.result


class _Driver:
    """One run of one workload."""

    def __init__(
        self,
        engine: Engine,
        workload: Workload,
        params: SamplingParams,
        clock: Clock,
        step_seconds: Callable[[StepRecord], float] | None,
    ) -> None:
        self.engine, self.workload, self.params = engine, workload, params
        self.real, self.step_seconds = clock == "real", step_seconds
        self.result = WorkloadRun(workload, clock, before=engine.cache.stats())
        self.timings: dict[str, Timing] = {}
        self._pending = deque(enumerate(workload.requests))
        self._begin = time.perf_counter()
        self._virtual = 0.0

    @property
    def now(self) -> float:
        return time.perf_counter() - self._begin if self.real else self._virtual

    def run(self) -> None:
        while self._pending or self.engine.has_work:
            while self._pending and self._pending[0][1].arrival <= self.now:
                self._add(*self._pending.popleft())
            if self.engine.has_work:
                self._step()
            elif self._pending:
                arrival = self._pending[0][1].arrival
                if self.real:
                    time.sleep(max(0.0, arrival - self.now))
                else:
                    self._virtual = max(self._virtual, arrival)
        self.result.timings = list(self.timings.values())
        self.result.seconds, self.result.after = self.now, self.engine.cache.stats()

    def _add(self, place: int, request: TimedRequest) -> None:
        prompt = self.workload.prompt(request, self.engine.model.config.vocab_size)
        params = replace(self.params, max_tokens=request.num_output, ignore_eos=True)
        try:
            name = self.engine.add(prompt, params, request_id=f"{self.workload.name}-{place}")
        except RequestError as error:
            self.result.refused.append((request, str(error)))
            return
        self.timings[name] = Timing(name, request.arrival, request.num_prompt, self.now)

    def _step(self) -> None:
        record = self.engine.step()
        took = sum(record.seconds.values())
        if self.step_seconds is not None:
            took = self.step_seconds(record)
        self._virtual += took
        self.result.busy_seconds += took
        self.result.num_steps += 1
        for token in record.tokens:
            timing = self.timings.get(token.request_id)
            if timing is not None and timing.first_token is None:
                timing.first_token = self.now
        for name in {sequence.request.request_id for sequence in record.finished}:
            self._ended(name)

    def _ended(self, name: str) -> None:
        timing, record = self.timings.get(name), self.engine.find(name)
        if timing is None or not record.finished:
            return
        timing.finished, timing.num_output = self.now, record.num_output_tokens
        timing.num_cached = record.metrics.num_cached_tokens
        timing.finish_reason = record.sequences[0].finish_reason
