"""Sweeps that ship with the repository, measured on a GPU: `datasets/sweeps/<gpu>/*.jsonl`.

What is shown of them is always called recorded, with device and date.
"""

from __future__ import annotations

from pathlib import Path

from workbench.playground.sweep import SUFFIX, Sweep, load_sweep

FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "sweeps"


def recorded_sweeps(kernel: str | None = None, folder: Path = FOLDER) -> list[Sweep]:
    """Return the sweeps of a kernel (None: of all), by kernel and case; empty if none ship.

    Raises `ConfigError` for a file there that is no sweep.
    """
    found = [load_sweep(path) for path in sorted(folder.glob(f"**/*{SUFFIX}"))]
    return [sweep for sweep in found if kernel in (None, sweep.header["kernel"])]


def title(sweep: Sweep) -> str:
    """Return what a recorded sweep is called: device, date, dtype, kernel and case."""
    header = sweep.header
    about = f"{header['kernel']} / {header['case']}, {header['dtype']}"
    return f"recorded {header['when']} on {header['device']}: {about}"
