"""What is tried: a kernel on a case, and what one trial of a configuration came to.

Plain records that travel between a notebook, its worker processes and sweep files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.errors import ConfigError
from workbench.kernels.registry import get_spec
from workbench.kernels.spec import KernelSpec
from workbench.playground.cells import spec_of_cell
from workbench.playground.checking import OK

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel of the registry, or a cell's version of it, on one case.

    source: the cell's text; None is the kernel as it ships. seed: of the inputs.
    """

    kernel: str
    case: str
    dtype: str = "bfloat16"
    seed: int = 0
    source: str | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an unknown dtype."""
        if self.dtype not in DTYPES:
            raise ConfigError("dtype", self.dtype, "no such dtype", f"Known: {', '.join(DTYPES)}.")

    @property
    def spec(self) -> KernelSpec:
        """The spec; raises `ConfigError` for an unknown kernel or a cell that defines none."""
        return (
            get_spec(self.kernel) if self.source is None else spec_of_cell(self.source, self.kernel)
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the inputs."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one configuration.

    status: "ok", or what it failed by: "wrong", "does not compile", "out of resources", "failed",
    "crashed", "hung", "cancelled"; `reason` says more. us: p10, p50, p90 of a call in microseconds,
    n samples, rel_error of the median (half its 95 % interval), None where nothing was timed.
    default_us: the default configuration, timed in turn with it. max_err, share: the largest
    difference from the reference, and the largest part of the tolerance that any element uses.
    resources: registers and spills (bytes) a thread, shared bytes a program, of each launch.
    """

    config: dict[str, int]
    status: str
    reason: str = ""
    us: dict[str, float] | None = None
    default_us: float | None = None
    max_err: float | None = None
    share: float | None = None
    resources: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it compiled and is right."""
        return self.status == OK

    @property
    def p50(self) -> float | None:
        """Median microseconds, None where it was not timed."""
        return None if self.us is None else self.us["p50"]


def config_key(config: Any) -> str:
    """Return a configuration as one short text, the same whatever the order of its names."""
    return " ".join(f"{name}={config[name]}" for name in sorted(config))
