"""What a launcher makes before anything runs: `Launch`es, and the `Plan` of launches with outputs.

A launcher checks its inputs, allocates outputs and returns a plan; running it is a separate act, so
that the same plan can be run, captured, timed, or only compiled for a GPU that is not there
(`kernels.cross_compile`). `Config` is one point of a kernel's tuning space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs

Config = Mapping[str, int]
"""Values of a kernel's tuning constants, and `num_warps` and `num_stages`."""

INTERPRETED: bool = bool(knobs.runtime.interpret)
"""Whether the kernels of this process run in Triton's interpreter (TRITON_INTERPRET=1).

Read when this module is imported, as Triton does when a kernel is defined. The interpreter computes
bf16 arithmetic wrongly (triton 3.7 to 3.9), so kernels that multiply tiles take UPCAST from here.
"""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel, its grid and its arguments; `config` holds the tuning constants.

    A true argument EARLY: it lets the next kernel start while it runs, and itself starts while the
    one before it runs (`kernels.early`), unless it `joins` several streams' kernels.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: Config
    joins: bool = False

    def __call__(self) -> None:
        """Launch it on the current stream."""
        self.kernel[self.grid](**self.keywords)

    @property
    def keywords(self) -> dict[str, Any]:
        """Return all that the kernel is called with: arguments, constants and options."""
        early = self.arguments.get("EARLY") and not self.joins
        options = {"launch_pdl": True} if early else {}
        return {**self.arguments, **self.config, **options}


@dataclass(frozen=True, slots=True)
class Plan:
    """Launches in order, and the tensors they fill."""

    launches: tuple[Launch, ...]
    outputs: Any

    def run(self) -> Any:
        """Launch all and return the outputs."""
        for launch in self.launches:
            launch()
        return self.outputs


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """Return the smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


ASSUMED_SM_COUNT = 132  # an H100 or H200: what plans are made for where there is no GPU


def sm_count(device: torch.device) -> int:
    """Return a GPU's number of multiprocessors; on a CPU, that of the GPU the plans are for."""
    if device.type != "cuda":
        return ASSUMED_SM_COUNT
    return torch.cuda.get_device_properties(device).multi_processor_count
