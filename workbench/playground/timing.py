"""Timing that can be trusted: interleaved graphs, until the median stands.

What is compared is captured in CUDA graphs over inputs that rotate (together twice the L2 cache,
where the case is large enough) and replayed in turn, so that clocks and neighbours weigh on all
alike. At least 100 samples each, until half the 95 % interval of every median is below 0.5 % of it;
where the time is up before, at least 100 calls in 20 samples. How near it came is part of the
result. Of a candidate that takes more than twice the default's time a few samples say so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from workbench.bench.gpu import captured

Call = Callable[[], object]
MIN_SAMPLES, MAX_SAMPLES = 100, 1000
MIN_CALLS, LATE_SAMPLES = 100, 20  # once the time is up: a slow call over many inputs
REL_ERROR = 0.005
_SAMPLE_US = 400.0  # a sample lasts at least this, so that events resolve it
_BATCH = 20  # samples between two looks at the clock
HOPELESS, _FIRST = 2.0, 5  # times the default, and after how many samples that is looked at


class Graph:
    """Calls captured in a CUDA graph, often enough to fill a sample; `once`: captured once each.

    calls: kept, because a replay writes where they wrote. Were their outputs freed, the next
    capture would give that memory back to the driver, and the next replay end the process.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = tuple(calls)
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # capture wants everything compiled and allocated
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self.once = captured(calls, 1)
        self.once.replay()
        taken = _elapsed([(self.once, *_events())])[0]
        rounds = max(1, min(100, round(_SAMPLE_US / max(taken, 1.0))))
        self.graph = self.once if rounds == 1 else captured(calls, rounds)
        self.num_calls = rounds * len(calls)

    def replay(self) -> None:
        """Run all its calls once more."""
        self.graph.replay()


def time_together(
    graphs: Mapping[str, Graph], seconds: float, beside: tuple[str, str] | None = None
) -> dict[str, dict[str, float]]:
    """Replay graphs in turn; return p10, p50, p90 (µs a call), n and rel_error of each.

    beside: a candidate and what it has to beat; a hopeless one is not timed further.
    """
    samples = _batch(graphs, _FIRST)
    if beside is not None:
        this, other = (sorted(samples[name])[_FIRST // 2] for name in beside)
        if this > HOPELESS * other:
            return {name: _figures(taken) for name, taken in samples.items()}
    deadline = time.perf_counter() + seconds
    calls = min(graph.num_calls for graph in graphs.values())
    late_samples = max(LATE_SAMPLES, -(-MIN_CALLS // calls))
    while True:
        for name, taken in _batch(graphs, _BATCH).items():
            samples[name] += taken
        least = min(map(len, samples.values()))
        settled = max(map(relative_error, samples.values())) < REL_ERROR
        late = time.perf_counter() > deadline and least >= late_samples
        if least >= MAX_SAMPLES or late or (least >= MIN_SAMPLES and settled):
            return {name: _figures(taken) for name, taken in samples.items()}


def relative_error(samples: Sequence[float]) -> float:
    """Return half the 95 % interval of the median, over the median; from order statistics."""
    ordered, n = sorted(samples), len(samples)
    reach = 0.98 * math.sqrt(n)  # 1.96 standard deviations of Binomial(n, 1/2)
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))
    return (ordered[high] - ordered[low]) / 2 / max(ordered[n // 2], 1e-9)


def _figures(samples: Sequence[float]) -> dict[str, float]:
    ordered, n = sorted(samples), len(samples)
    cut = n // 10
    found = {"p10": ordered[cut], "p50": ordered[n // 2], "p90": ordered[-1 - cut]}
    return {k: round(v, 3) for k, v in found.items()} | {
        "n": n,
        "rel_error": round(relative_error(samples), 5),
    }


def _batch(graphs: Mapping[str, Graph], count: int) -> dict[str, list[float]]:
    """Return microseconds a call of so many samples of each graph, taken in turn."""
    order = [name for _ in range(count) for name in graphs]
    timed = [(graphs[name].graph, *_events()) for name in order]
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for name, us in zip(order, _elapsed(timed), strict=True):
        taken[name].append(us / graphs[name].num_calls)
    return taken


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    one, other = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return one, other


def _elapsed(
    timed: Sequence[tuple[torch.cuda.CUDAGraph, torch.cuda.Event, torch.cuda.Event]],
) -> list[float]:
    for graph, begin, end in timed:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [1e3 * float(begin.elapsed_time(end)) for _, begin, end in timed]
