"""Timing on a CUDA GPU: in a CUDA graph and eagerly apart, and the ceilings of the machine.

A sample is one replay of a graph, or one run of a batch of calls, between two events, divided by
its calls. Calls rotate over several inputs, which together are larger than the L2 cache.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from workbench.errors import ConfigError

Call = Callable[[], object]
_SAMPLE_US = 1000.0  # a sample lasts at least this, so that events resolve it
_MIN_SAMPLES, _MAX_SAMPLES = 20, 400


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call: median, 10th and 90th percentile, over n samples."""

    p50: float
    p10: float
    p90: float
    n: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Return the percentiles of samples in microseconds."""
        ordered = sorted(samples)
        cut = len(ordered) // 10
        return cls(ordered[len(ordered) // 2], ordered[cut], ordered[-1 - cut], len(ordered))


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this GPU reached just now: bytes/s of a copy and of a sum, FLOP/s of a bf16 product."""

    copy: float
    read: float
    gemm: float

    def floor_us(self, num_bytes: int, flops: int) -> float:
        """Return the least time of some work: that of its traffic, or of its arithmetic."""
        return 1e6 * max(num_bytes / max(self.copy, self.read), flops / self.gemm)


def require_gpu() -> torch.device:
    """Return the GPU; raise `ConfigError` if there is none."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "device",
            "cpu",
            "kernels are measured on a CUDA GPU, and torch finds none",
            "Run this on one. Without: `python -m workbench.kernels.cross_compile` compiles them "
            "for one, and `pytest tests/kernels` checks them in Triton's interpreter.",
        )
    return torch.device("cuda", torch.cuda.current_device())


def driver_version() -> str:
    """Return the version of the NVIDIA driver, "unknown" where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on a GPU; a CPU has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graph_timing(calls: Sequence[Call], seconds: float) -> Timing:
    """Time calls captured in one CUDA graph, for about so many seconds."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # capture wants everything compiled and allocated
        for call in (*calls, *calls):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    once = captured(calls, 1)
    rounds = _rounds(once.replay)
    graph = once if rounds == 1 else captured(calls, rounds)
    return Timing.of(_samples(graph.replay, rounds * len(calls), seconds))


def captured(calls: Sequence[Call], rounds: int) -> torch.cuda.CUDAGraph:
    """Return the calls, gone through `rounds` times, as one CUDA graph.

    It writes where the calls write: they, and so their outputs, must live as long as it does.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may compile, and load what they compiled, meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph


def eager_timing(calls: Sequence[Call], seconds: float) -> Timing:
    """Time calls as Python makes them, launch costs included, for about so many seconds."""

    def once() -> None:
        for call in calls:
            call()

    rounds = _rounds(once)

    def run() -> None:
        for _ in range(rounds):
            once()

    return Timing.of(_samples(run, rounds * len(calls), seconds))


def _rounds(once: Call) -> int:
    """Return how often to go through the calls to fill a sample; the first two runs warm up."""
    estimate = [_sample(once) for _ in range(3)][-1]
    return max(1, min(200, round(_SAMPLE_US / max(estimate, 1.0))))


def _samples(run: Call, num_calls: int, seconds: float) -> list[float]:
    deadline = time.perf_counter() + seconds
    samples: list[float] = []
    while len(samples) < _MIN_SAMPLES or (
        time.perf_counter() < deadline and len(samples) < _MAX_SAMPLES
    ):
        samples.append(_sample(run) / num_calls)
    return samples


def _sample(run: Call) -> float:
    """Return microseconds of the GPU between two events around `run`."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end))


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure copy, read and matrix product; takes a second or two and warms the GPU up."""
    source = torch.randn(1 << 29, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy = graph_timing([lambda: target.copy_(source)], 0.3)
    wide = source.view(torch.float32)
    read = graph_timing([lambda: torch.sum(wide)], 0.3)
    size = 8192
    a, b = (source[i * size * size :][: size * size].view(size, size) for i in (0, 1))
    out = torch.empty_like(a)
    product = graph_timing([lambda: torch.mm(a, b, out=out)], 0.5)
    return Ceilings(
        copy=2 * source.nbytes / copy.p50 * 1e6,
        read=source.nbytes / read.p50 * 1e6,
        gemm=2 * size**3 / product.p50 * 1e6,
    )


def num_rotations(num_bytes: int, device: torch.device, most: int = 32) -> int:
    """Return how many inputs of this size exceed twice the L2 cache together."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(most, -(-2 * cache // max(num_bytes, 1))))
