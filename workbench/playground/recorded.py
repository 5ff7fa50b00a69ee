"""Sweeps that ship with the repository, measured on a GPU: `datasets/sweeps/<gpu>/*.jsonl`.

What is shown of them is always called recorded, with device and date, and of an earlier source if
the kernel was changed since.
"""

from __future__ import annotations

from pathlib import Path

from workbench.kernels.registry import SPECS
from workbench.places import DATASETS, repository_root
from workbench.playground.sweep import SUFFIX, Sweep, load_sweep

FOLDER = repository_root() / DATASETS / "sweeps"


def recorded_sweeps(kernel: str | None = None, folder: Path = FOLDER) -> list[Sweep]:
    """Return the sweeps of a kernel (None: of all), by kernel and case; empty if none ship.

    Raises `ConfigError` for a file there that is no sweep.
    """
    found = [load_sweep(path) for path in sorted(folder.glob(f"**/*{SUFFIX}"))]
    return [sweep for sweep in found if kernel in (None, sweep.header["kernel"])]


def title(sweep: Sweep) -> str:
    """Return what a recorded sweep is called: device, date, dtype, kernel, case, and its source."""
    header = sweep.header
    about = f"{header['kernel']} / {header['case']}, {header['dtype']}"
    spec = SPECS.get(header["kernel"])
    today = spec is not None and spec.source_hash == header["source_hash"]
    earlier = "" if today else ", of an earlier source"
    return f"recorded {header['when']} on {header['device']}: {about}{earlier}"
