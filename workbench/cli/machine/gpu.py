"""The NVIDIA GPUs, as the driver's own tool reports them.

torch is not asked: it may be absent, or a build without CUDA on a machine that has a GPU, and that
difference is just what `workbench doctor` has to show.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.cli.machine.command import output_of

FIELDS = "name,memory.total,compute_cap,driver_version"


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in MiB, compute capability such as (9, 0), the driver's version."""

    name: str
    memory_mib: int
    capability: tuple[int, int]
    driver: str


def read_gpus() -> list[Gpu]:
    """Return the GPUs that `nvidia-smi` lists; none where it is absent or fails."""
    listing = output_of(["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"])
    return parse_gpus(listing or "")


def parse_gpus(listing: str) -> list[Gpu]:
    """Return one `Gpu` a line of `nvidia-smi --query-gpu` in csv; other lines are left out."""
    gpus = []
    for line in listing.splitlines():
        cells = [cell.strip() for cell in line.rsplit(",", 3)]
        if len(cells) == 4 and cells[1].isdigit() and cells[2].replace(".", "", 1).isdigit():
            major, _, minor = cells[2].partition(".")
            gpus.append(Gpu(cells[0], int(cells[1]), (int(major), int(minor or 0)), cells[3]))
    return gpus
