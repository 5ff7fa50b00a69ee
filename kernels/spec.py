"""`KernelSpec`: everything about a kernel that is not its code, in one frozen record.

The test of all kernels, the tuner, the benchmark and the playground are written against this record
alone: which inputs to make, what the right answer is and how near it one must come, what may be
tuned, and how much work a case is. A spec holds functions of a kernel's inputs (the keyword
arguments that `make_inputs` returns and both `reference` and `plan` take).
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from workbench.errors import ConfigError
from workbench.kernels.launch import Config, Plan

Inputs = dict[str, Any]
Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A named input. `params` are keywords of `make_inputs`.

    small: awkward but little, for the interpreter too; others are real models' shapes, for a GPU.
    quick: one of the shapes that `--quick` measures. min_capability: 89 for fp8, as 10 * major +
    minor.
    """

    params: Params
    small: bool = True
    quick: bool = False
    min_capability: int = 80


@dataclass(frozen=True)
class KernelSpec:
    """A kernel with its oracle, its inputs, its tuning space and its costs.

    reference(**inputs): the outputs in plain torch; never writes to its inputs.
    plan(**inputs, config=None): a `Plan`; None takes `default(**inputs)`.
    make_inputs(dtype=, device=, seed=, **params): the inputs of a case.
    space, keep(config, inputs): the candidates beside `default`, which names the same constants.
    bucket(**inputs): the inputs that share a tuned configuration, as a short text.
    flops(**inputs), num_bytes(**inputs): the least work and traffic that the result needs.
    tolerance: (rtol, atol) by dtype. limits: what is supported, (least, most) of named quantities.
    baseline(**inputs): a library's way to the same outputs, where there is one; for timing.
    """

    name: str
    summary: str
    reference: Callable[..., Any]
    plan: Callable[..., Plan]
    make_inputs: Callable[..., Inputs]
    cases: Mapping[str, Case]
    space: Mapping[str, Sequence[int]]
    keep: Callable[[Config, Inputs], bool]
    default: Callable[..., Config]
    bucket: Callable[..., str]
    flops: Callable[..., int]
    num_bytes: Callable[..., int]
    tolerance: Mapping[torch.dtype, tuple[float, float]]
    limits: Mapping[str, tuple[int, int]]
    baseline: Callable[..., Any] | None = None
    sources: tuple[str, ...] = ()

    def inputs(
        self, case: str, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
    ) -> Inputs:
        """Return the inputs of a case; raise `ConfigError` for a name that is not in `cases`."""
        if case not in self.cases:
            known = ", ".join(self.cases)
            raise ConfigError("case", case, f"{self.name} has no such case", f"Known: {known}.")
        return self.make_inputs(
            dtype=dtype, device=torch.device(device), seed=seed, **self.cases[case].params
        )

    def configs(self, inputs: Inputs) -> Iterator[Config]:
        """Yield the default, then every point of the space that `keep` lets through."""
        default = dict(self.default(**inputs))
        yield default
        names = list(self.space)
        for values in itertools.product(*self.space.values()):
            config = dict(zip(names, values, strict=True))
            if config != default and self.keep(config, inputs):
                yield config

    def __call__(self, *, config: Config | None = None, **inputs: Any) -> Any:
        """Run the kernel and return its outputs."""
        return self.plan(**inputs, config=config).run()

    @cached_property
    def source_hash(self) -> str:
        """Return a hash of the files that the kernel is written in: a tuned table's validity."""
        own = inspect.getfile(self.plan)
        folder = Path(own).parent
        digest = hashlib.sha256()
        for path in (Path(own), *(folder / name for name in self.sources)):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def check_limits(kernel: str, limits: Mapping[str, tuple[int, int]], **quantities: int) -> None:
    """Raise `ConfigError` naming the first quantity that lies outside a kernel's limits."""
    for name, value in quantities.items():
        least, most = limits[name]
        if not least <= value <= most:
            raise ConfigError(
                f"{kernel}.{name}",
                value,
                f"the kernel takes {least} to {most}",
                "Use the `sdpa` backend for this shape.",
            )
