"""Timing shared by the benchmarks: interleaved repeats, medians with their spread, foreign load.

A row names everything needed to repeat it (commit, machine, versions, workload, seed); rows are
appended to a JSON-lines file and never edited.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

import workbench


class Figures(NamedTuple):
    """A measurement that was repeated n times: median, 10th and 90th percentile.

    Of fewer than ten, low and high are the extremes.
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figures:
        """Return the figures of the repeats, one value each."""
        ordered = sorted(values)
        cut = len(ordered) // 10
        return cls(statistics.median(ordered), ordered[cut], ordered[-1 - cut], len(ordered))


@dataclass(slots=True)
class Samples:
    """Seconds of each repeat, and how many cores other processes used meanwhile."""

    seconds: list[float] = field(default_factory=list)
    foreign_cores: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile of the seconds (the extremes for fewer than ten)."""
        figures = Figures.of(self.seconds)
        return figures.low, figures.high

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Time the block and record what else ran."""
        process = psutil.Process()
        busy, own = _busy_seconds(), sum(process.cpu_times()[:2])
        start = time.perf_counter()
        yield
        wall = time.perf_counter() - start
        self.seconds.append(wall)
        foreign = _busy_seconds() - busy - (sum(process.cpu_times()[:2]) - own)
        self.foreign_cores.append(max(0.0, foreign / wall))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark: what was measured (`Figures`), and where.

    foreign_cores: how many cores other processes used meanwhile, where that was seen.
    """

    bench: str
    case: str
    engine: str
    unit: str
    median: float
    low: float
    high: float
    n: int
    foreign_cores: float = 0.0
    output_hash: str = ""
    where: dict[str, Any] = field(default_factory=dict)


def machine() -> dict[str, Any]:
    """Return commit, versions and machine, for a row."""
    return {
        "commit": _commit(),
        "workbench": workbench.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def interleave(
    candidates: Mapping[str, Callable[[int], Any]],
    repeats: int,
    progress: Callable[[str], None],
) -> tuple[dict[str, Samples], dict[str, Any]]:
    """Run every candidate once per repeat, in turn, after one warm-up each.

    A candidate is called with the repeat's number. `progress` gets a line after each run. Returns
    the samples and each one's last result.
    """
    samples = {name: Samples() for name in candidates}
    results: dict[str, Any] = {}
    for repeat in range(-1, repeats):
        for name, candidate in candidates.items():
            taken = samples[name] if repeat >= 0 else Samples()
            with taken.measure():
                results[name] = candidate(repeat)
            turn = f"repeat {repeat + 1} of {repeats}" if repeat >= 0 else "warm-up"
            load = f"other load {taken.foreign_cores[-1]:.2f} cores"
            progress(f"{turn}: {name} {taken.seconds[-1]:.3f} s, {load}")
    return samples, results


def hash_of(result: Any) -> str:
    """Return a short hash of plain values, such as each request's token ids."""
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()[:16]


def append_rows(path: Path, rows: list[Row]) -> None:
    """Append rows to a JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(asdict(row)) + "\n")


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def _commit() -> str:
    root = Path(workbench.__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
